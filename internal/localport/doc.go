// Package localport serves TCP node ports on 127.0.0.1 and ::1 to this host, by copying bytes between sockets. The nftables
// mode needs it: there the kernel cannot rewrite what is sent to a loopback address (KEP-6032).
//
//	fwd.Changes ─► Update ─► Sync ┄┄► Run ─► listeners, one for each node port and family
//	              (the loop's goroutine)        └► accept ─► choose an endpoint ─► dial ─► copy both ways
//
// The caller calls Update for all changes and Sync after a sync that succeeded; neither waits. It enables a family only
// where the node-port addresses name its loopback address explicitly ("localhost", 127.0.0.1/32), not by a zero prefix.
//
// Which endpoints: those of the frontend's route for the class Outside, though the client is this host.
//
//	externalTrafficPolicy  endpoints         Outside (taken)           Host
//	Cluster                some usable       forward, cluster pool     the same
//	Local                  some local        forward, local pool       forward, cluster pool (short circuit)
//	Local                  none local        drop                      forward, cluster pool (short circuit)
//	any                    none usable       reject                    the same
//
// KEP-6032 restricts policy Local to endpoints on this node, so the short circuit of the class Host is not wanted; with
// policy Cluster the two classes agree. Of a local pool only endpoints with Local are taken, whatever else is in it.
//
// Rules:
//
//  1. A node port is listened on while the route forwards, and has an endpoint; otherwise the host refuses connections.
//  2. Each connection goes to one endpoint, at random by weight. If that does not answer the connection is reset; no other
//     is tried, as in the kernel's modes.
//  3. With session affinity all clients of a node port and family are one client address, so all share one endpoint, until
//     the time-out since the last new connection. A changed time-out holds at once. An endpoint that leaves the pool is
//     forgotten, as is everything when the port passes to another service port.
//  4. Connections outlive their endpoint's place in the pool, and their listener. They end with the process, by a reset,
//     so that nobody takes a part for the whole. An end of one direction is passed on as such; an error resets both sides.
//  5. A port that a process of the host has is logged once, counted, and tried again with a growing pause of at most a
//     minute. Nothing else is affected.
//  6. A client whose source is not a loopback address is reset: where route_localnet is on, neighbours could otherwise
//     reach the listener (CVE-2020-8558).
//  7. The kernel chooses the source address towards the endpoint: one of this node.
//
// Not for: UDP and SCTP node ports on loopback, which nobody serves; IPv4 in modes whose kernel rules
// serve 127.0.0.0/8. A client that is gone while only its endpoint's direction is open is noticed with the next byte from
// the endpoint.
//
// Commands import the package; it imports fwd. Tested with real sockets on loopback, and with synctest where time matters.
package localport
