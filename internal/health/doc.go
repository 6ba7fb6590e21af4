// Package health answers those who ask whether this node forwards: cloud load balancers, the kubelet and operators.
//
//	loop ──Queued, Synced, Verified, Node──► State ──► Handler: /healthz, /livez, /readyz   (0.0.0.0:10256)
//	     ──Update, Programmed──► Checks ──► a listener for each health-check node port
//	Server: listens, and tries again every five seconds where it cannot
//
// The endpoints of the State:
//
//	path      200 when                                       who asks
//	/livez    fresh                                          kubelet: a restart may help
//	/healthz  fresh, and the node is not about to go away    load balancers, external traffic policy Cluster (KEP-3836)
//	/readyz   fresh, the rules are in the kernel and were    roll-outs, and whoever must not use the node before
//	          read back, and no watch is out of touch
//
// Otherwise they answer 503. Codes, headers and bodies of the first two, and of the health-check node ports, are those of
// kube-proxy 1.36, byte for byte; /readyz is our own.
//
// Fresh means that forwarding follows what is known of the cluster:
//
//   - no change has waited for twice the sync period or longer, in either family, also one that the loop has not taken;
//   - no watch that is open has been silent for longer than StaleAfter.
//
// The second rule finds a process that is stuck. A watch is never silent for so long on a healthy node, however quiet the
// cluster: the API server sends a bookmark every minute and ends each watch after five to ten minutes, and a watch that
// it should have ended long ago is cut on this side (package kube), after which there is another one.
// While the API server is down or cannot be reached no watch is open. The last state then stays in force, and neither
// /livez nor /healthz fail: nothing would be better if all nodes restarted their proxies, or left the load balancers,
// at once. Only /readyz fails then, when nothing was heard for StaleAfter; its body and the metric fairlead_watch_stale_seconds
// tell how long it is.
//
// Invariants:
//
//  1. Those who report never wait: their calls take one short lock.
//  2. A Service's health-check node port answers for what is in the kernel, not for what the API says: its number of
//     endpoints changes when the rules have been written, in the first of the families in which the Service has frontends.
//     While one family fails, the ports follow the other.
//  3. Both families share one server: the number counts the endpoints of both, whichever address is asked.
//  4. A port that cannot be listened on is told once as an Event and tried again every five seconds. Nothing else depends
//     on it.
//  5. When the context ends, everything is closed at once.
//  6. A client holds a connection for a bounded time, and many clients do not keep others from being answered (limit.go).
//
// Not for: metrics (package metrics). Commands import the package; it imports fwd. Tested with a clock of the test, with real
// sockets on loopback, and for listeners with a fake of the network.
package health
