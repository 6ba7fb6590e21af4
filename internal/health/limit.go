package health

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// maxConns is how many connections a server keeps, or all servers of health-check node ports together. Load balancers and scrapers
// need far fewer, and each takes a file descriptor and some 10 KiB.
const maxConns = 500

// connLimit bounds connections. One that is too many is not made to wait, since others could then keep probes from being answered: the
// connection on which nothing has begun or ended for longest is closed instead. Any goroutine may call its methods.
type connLimit struct {
	most int

	mu sync.Mutex // guards conns and at
	// conns are the open ones, the one that changed last at the back; at finds them.
	conns list.List
	at    map[net.Conn]*list.Element
}

func newConnLimit(most int) *connLimit {
	return &connLimit{most: most, at: make(map[net.Conn]*list.Element)}
}

// follow is for http.Server.ConnState.
func (l *connLimit) follow(c net.Conn, s http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch s {
	case http.StateNew:
		l.at[c] = l.conns.PushBack(c)
		for l.conns.Len() > l.most {
			oldest := l.conns.Front().Value.(net.Conn)
			l.forget(oldest)
			_ = oldest.Close() // fails only if it is closed already
		}
	case http.StateActive, http.StateIdle:
		if e := l.at[c]; e != nil {
			l.conns.MoveToBack(e)
		}
	case http.StateHijacked, http.StateClosed:
		l.forget(c)
	}
}

func (l *connLimit) forget(c net.Conn) {
	if e := l.at[c]; e != nil {
		l.conns.Remove(e)
		delete(l.at, c)
	}
}
