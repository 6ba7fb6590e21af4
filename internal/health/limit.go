package health

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// maxConns is how many connections a server keeps open, and all servers of health-check node ports
// together. Load balancers and scrapers need far fewer. Each costs a file descriptor and some 10
// KiB.
const maxConns = 500

// connLimit limits the number of connections. If there are too many it closes the one that has been
// idle, or busy with the same request, for the longest time. Making new connections wait would let
// others block probes. Any goroutine may call its methods.
type connLimit struct {
	most int

	mu sync.Mutex // guards all fields below
	// conns are the open connections, the one whose state changed last at the back, and elements
	// their places in the list.
	conns    list.List
	elements map[net.Conn]*list.Element
}

func newConnLimit(most int) *connLimit {
	return &connLimit{most: most, elements: make(map[net.Conn]*list.Element)}
}

// follow is for http.Server.ConnState.
func (l *connLimit) follow(c net.Conn, s http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch s {
	case http.StateNew:
		l.elements[c] = l.conns.PushBack(c)
		for l.conns.Len() > l.most {
			oldest := l.conns.Front().Value.(net.Conn)
			l.forget(oldest)
			_ = oldest.Close() // fails only if it is closed already
		}
	case http.StateActive, http.StateIdle:
		if e := l.elements[c]; e != nil {
			l.conns.MoveToBack(e)
		}
	case http.StateHijacked, http.StateClosed:
		l.forget(c)
	}
}

func (l *connLimit) forget(c net.Conn) {
	if e := l.elements[c]; e != nil {
		l.conns.Remove(e)
		delete(l.elements, c)
	}
}
