// Package health answers the question whether this node forwards. Cloud load balancers, the kubelet
// and operators ask it.
//
//	loop ──Queued, Synced, Verified, Node──► State ──► /healthz, /livez, /readyz (:10256)
//	     ──Update, Programmed──► Checks ──► a listener for each health-check node port
//	Server: binds an address, retries every five seconds if that fails, and serves
//
// The endpoints of the State:
//
//	path      200 if                                       used by
//	/livez    fresh                                        the kubelet: a restart may help
//	/healthz  fresh, and the node is not about to go away  load balancers (KEP-3836)
//	/readyz   fresh, the rules are in the kernel and were  roll-outs
//	          verified, and no watch has been silent too long
//
// Otherwise the code is 503. Codes, headers and bodies of the first two, and of the health-check
// node ports, are those of kube-proxy 1.36, byte for byte. /readyz is our own.
//
// Fresh means that forwarding follows what is known of the cluster:
//
//   - in no family has a change waited for twice the sync period or longer, including changes that
//     the loop has not taken yet;
//   - no open watch has been silent for longer than StaleAfter.
//
// The second rule finds a process that is stuck. On a healthy node a watch is never silent for so
// long, however quiet the cluster is: the API server sends a bookmark every minute and ends each
// watch after five to ten minutes. Package kube closes a watch that the API server should have
// ended, and opens another.
//
// While the API server is down or unreachable no watch is open. The last known state then stays in
// force, and neither /livez nor /healthz fails: it would help nobody if all nodes restarted their
// proxies, or left the load balancers, at once. Only /readyz fails, after StaleAfter of silence.
// Its body and the metric fairlead_watch_stale_seconds say how long the silence is.
//
// Invariants:
//
//  1. Reporters never wait: their calls hold a lock for a moment.
//  2. A Service's health-check node port shows what is in the kernel, not what the API says. Its
//     number of endpoints changes when the rules have been written in the first of the families in
//     which the Service has frontends. While one family fails, the ports follow the other.
//  3. Both families share one server: the number counts the endpoints of both, whichever address
//     the client uses.
//  4. A port that cannot be bound is reported once as an Event and retried every five seconds.
//     Nothing else depends on it.
//  5. When the context ends, everything is closed at once.
//  6. A client can occupy a connection for a limited time only, and many clients cannot block
//     others (limit.go).
//
// Not for: metrics (package metrics). Imported by cmd/fairlead. Tested with synthetic time, with
// real sockets on loopback, and for listeners with a fake network.
package health
