package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// AcceptAll accepts and closes IPv4 connections to a port in a namespace until the returned
// function is called.
func AcceptAll(in Entrance, port uint16) (func(), error) {
	var l net.Listener
	if err := in.Do(func() (err error) { l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port)); return err }); err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.Close()
			}
		}
	}()
	return func() { l.Close() }, nil
}

// Rate makes IPv4 connections from a namespace one after the other for about this long, and returns
// the number per second. It resets each connection, so that no port stays in TIME_WAIT.
func Rate(in Entrance, dst netip.AddrPort, d time.Duration) (rate float64, err error) {
	err = in.Do(func() error {
		rate, err = connect(dst, d)
		return err
	})
	return rate, err
}

func connect(dst netip.AddrPort, d time.Duration) (float64, error) {
	to := &unix.SockaddrInet4{Port: int(dst.Port()), Addr: dst.Addr().As4()}
	start, n := time.Now(), 0
	for ; time.Since(start) < d; n++ {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		if err = unix.Connect(fd, to); err == nil {
			err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
		unix.Close(fd)
		if err != nil {
			return 0, fmt.Errorf("connect to %s: %w", dst, err)
		}
	}
	return float64(n) / time.Since(start).Seconds(), nil
}
