package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
)

// Server answers questions on some addresses and ports until it is closed.
type Server struct {
	name    string
	addrs   []netip.AddrPort
	closers []func() error
	running sync.WaitGroup

	// mu guards conns and closed.
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// Serve starts a server in the namespace. The name must not contain spaces. Each of the protos
// "tcp", "udp" or "sctp" is served on each port of each address.
func Serve(in Entrance, name string, addrs []netip.Addr, protos []string, ports []uint16) (*Server, error) {
	s := &Server{name: name, conns: map[net.Conn]struct{}{}}
	for _, a := range addrs {
		for _, proto := range protos {
			if err := s.listen(in, proto, a, ports); err != nil {
				return nil, errors.Join(fmt.Errorf("serve %s on %s: %w", proto, a, err), s.Close())
			}
		}
	}
	return s, nil
}

func (s *Server) listen(in Entrance, proto string, a netip.Addr, ports []uint16) error {
	if proto == "sctp" {
		return s.serveSCTP(in, a, ports)
	}
	for _, port := range ports {
		at := netip.AddrPortFrom(a, port)
		var err error
		switch proto {
		case "tcp":
			err = s.serveTCP(in, at)
		case "udp":
			err = s.serveUDP(in, at)
		default:
			err = fmt.Errorf("unknown protocol %q", proto)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) serveTCP(in Entrance, at netip.AddrPort) error {
	var l net.Listener
	err := in.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", at.String())
		return err
	})
	if err != nil {
		return err
	}
	s.addrs = append(s.addrs, addrPort(l.Addr()))
	s.closers = append(s.closers, l.Close)
	s.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.running.Go(func() { s.converse(c) })
		}
	})
	return nil
}

// converse answers the questions on one TCP connection.
func (s *Server) converse(c net.Conn) {
	defer c.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	at, saw := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	for lines := bufio.NewScanner(c); lines.Scan(); {
		if _, err := c.Write([]byte(answer(lines.Text(), s.name, at, saw))); err != nil {
			return
		}
	}
}

func (s *Server) serveUDP(in Entrance, at netip.AddrPort) error {
	var c net.PacketConn
	err := in.Do(func() (err error) {
		c, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", at.String())
		return err
	})
	if err != nil {
		return err
	}
	at = addrPort(c.LocalAddr()) // with the port that the kernel chose
	s.addrs = append(s.addrs, at)
	s.closers = append(s.closers, c.Close)
	s.running.Go(func() {
		buf := make([]byte, 256)
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			// Continue if a client is gone.
			_, _ = c.WriteTo([]byte(answer(strings.TrimSpace(string(buf[:n])), s.name, at, addrPort(from))), from)
		}
	})
	return nil
}

// Addrs returns the TCP and UDP addresses of the server. Port 0 is replaced by the port that the
// kernel chose.
func (s *Server) Addrs() []netip.AddrPort { return s.addrs }

// Close stops listening, ends open connections and waits for both.
func (s *Server) Close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c())
	}
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		errs = append(errs, c.Close())
	}
	s.mu.Unlock()
	s.running.Wait()
	return errors.Join(errs...)
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
