// Package localport serves TCP node ports on 127.0.0.1 and ::1 to this host, by copying bytes
// between sockets. Mode nftables needs it: there the kernel cannot rewrite packets that are sent to
// a loopback address (KEP-6032).
//
//	fwd.Changes ─► Update ─► Sync ┄┄► Run ─► listeners, one for each node port and family
//	              (the loop's goroutine)        └► accept ─► choose ─► dial ─► copy
//
// The caller calls Update for all changes, and Sync after each successful sync; neither waits. It
// enables a family only if the node-port addresses list its loopback address explicitly
// ("localhost", 127.0.0.1/32), not by a zero prefix.
//
// Endpoints are those of the frontend's route for the class Outside, although the client is this
// host:
//
//	externalTrafficPolicy  endpoints         Outside (used)            Host
//	Cluster                some usable       forward, cluster pool     the same
//	Local                  some local        forward, local pool       cluster pool (short circuit)
//	Local                  none local        drop                      cluster pool (short circuit)
//	any                    none usable       reject                    the same
//
// KEP-6032 restricts policy Local to endpoints on this node, so the short circuit of the class Host
// is wrong here. With policy Cluster the two classes agree. From a local pool only endpoints that
// are Local are used, whatever else it contains.
//
// Rules:
//
//  1. A node port has a listener while its route forwards and has an endpoint. Otherwise the host
//     refuses connections.
//  2. Each connection goes to one endpoint, chosen at random by weight. If that does not respond,
//     the connection is reset; no other endpoint is tried, as in the kernel's modes.
//  3. With session affinity all clients of a node port and family are one client address, so all
//     share one endpoint until the timeout since the last new connection. A changed timeout applies
//     at once. An endpoint that leaves the pool is forgotten; so is everything when the port moves
//     to another service port.
//  4. Connections outlive their endpoint's place in the pool, and their listener. When the process
//     ends they are reset, so that nobody mistakes part of the data for all of it. An end of file
//     in one direction is passed on; an error resets both sides.
//  5. A port that another process has bound is logged once, counted, and retried with a growing
//     pause of at most a minute. Nothing else is affected.
//  6. A client whose source is not a loopback address is reset. With route_localnet set, neighbours
//     could otherwise reach the listener (CVE-2020-8558).
//  7. The kernel chooses the source address towards the endpoint: one of this node.
//
// Not for: UDP and SCTP node ports on loopback, which no mode serves; IPv4 in modes whose kernel
// rules serve 127.0.0.0/8. If a client disappears while only the direction from the endpoint is
// open, the next byte from the endpoint shows it.
//
// Imported by cmd/fairlead. Tested with real sockets on loopback, and with synthetic time where
// time matters.
package localport
