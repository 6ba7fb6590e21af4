package netlink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is the default size of both buffers of a socket. It needs CAP_NET_ADMIN in the
	// first user namespace; without it the buffers are as large as net.core.wmem_max and rmem_max
	// allow, and batches smaller.
	bufferSize = 1 << 20
	// readSize is larger than the kernel's datagrams (32 KiB).
	readSize = 64 << 10
	// timeout is how long the kernel may take to answer. It carries out a request while it is sent,
	// so that the answer is normally there when send returns, except for dumps.
	timeout = 60 * time.Second
)

// settings are the settings of a socket.
type settings struct {
	protocol int
	// groups are the multicast groups to join.
	groups []int
	// sendSize is the size of the send buffer in bytes.
	sendSize int
	// namespace is the network namespace to open sockets in.
	namespace *os.File
}

// socket is one netlink socket. It belongs to one goroutine at a time.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	// port is the address that the kernel gave the socket; answers have it.
	port uint32
	// sendSize and receiveSize are the actual sizes of the buffers in bytes.
	sendSize, receiveSize int
	buf                   []byte
	// clean means that all answers to what was sent were received. A socket that is not clean is
	// never used again.
	clean bool
}

// currentNamespace opens the network namespace of the calling thread.
func currentNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// open opens a socket in the namespace, on whatever thread the caller runs.
func (c settings) open() (*socket, error) {
	type result struct {
		s   *socket
		err error
	}
	opened := make(chan result, 1)
	go func() {
		var s *socket
		err := c.inNamespace(func() (err error) {
			s, err = c.openHere()
			return err
		})
		opened <- result{s, err}
	}()
	r := <-opened
	if r.err != nil {
		return nil, fmt.Errorf("open a netlink socket for protocol %d: %w", c.protocol, r.err)
	}
	return r.s, nil
}

// inNamespace calls f with the goroutine locked to a thread in the namespace. The thread returns to
// its namespace afterwards instead of exiting, since the exit of a thread kills the processes that
// it started with PR_SET_PDEATHSIG.
func (c settings) inNamespace(f func() error) error {
	runtime.LockOSThread()
	own, err := currentNamespace()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	here, err := own.Stat()
	there, err2 := c.namespace.Stat()
	if err = errors.Join(err, err2); err != nil || os.SameFile(here, there) { // setns needs a capability that the process may not have
		defer runtime.UnlockOSThread()
		if err == nil {
			err = f()
		}
		return err
	}
	if err := unix.Setns(int(c.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked, so that it exits with this goroutine and no other goroutine runs
		// on it.
		return errors.Join(err, fmt.Errorf("return to the thread's network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

func (c settings) openHere() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, c.protocol)
	if err != nil {
		return nil, err
	}
	// With the runtime's poller, deadlines and Close interrupt a wait.
	s := &socket{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, readSize)}
	if err := s.setUp(fd, c); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

func (s *socket) setUp(fd int, c settings) error {
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if a, ok := name.(*unix.SockaddrNetlink); ok {
		s.port = a.Pid
	}
	for _, g := range c.groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return fmt.Errorf("join multicast group %d: %w", g, err)
		}
	}
	if s.sendSize, err = enlarge(fd, c.sendSize, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF); err != nil {
		return err
	}
	if s.receiveSize, err = enlarge(fd, bufferSize, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF); err != nil {
		return err
	}
	// Errors have an explanation, since Linux 4.12, and no copy of the request.
	options := []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK}
	if c.protocol == unix.NETLINK_ROUTE {
		// The kernel filters dumps (4.20).
		options = append(options, unix.NETLINK_GET_STRICT_CHK)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, o, 1); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			return err
		}
	}
	s.raw, err = s.file.SyscallConn()
	return err
}

// enlarge sets the size of a buffer and returns its actual size.
func enlarge(fd, size, force, plain int) (int, error) {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size)
	if errors.Is(err, unix.EPERM) {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
	if err != nil {
		return 0, err
	}
	return unix.GetsockoptInt(fd, unix.SOL_SOCKET, plain)
}

// send sends messages to the kernel, which processes them before send returns.
func (s *socket) send(b []byte) error {
	var err error
	s.clean = false
	if e := s.raw.Control(func(fd uintptr) {
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		}
	}); e != nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("send %d bytes to the kernel: %w", len(b), err)
	}
	return nil
}

// receive waits for a datagram from the kernel, which is valid until the next call.
func (s *socket) receive(ctx context.Context) ([]byte, error) {
	b, err := s.poll()
	if !errors.Is(err, unix.EAGAIN) {
		return b, err
	}
	if err := s.file.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, fmt.Errorf("receive from the kernel: %w", err)
	}
	return s.wait(ctx)
}

// wait is receive without the timeout.
func (s *socket) wait(ctx context.Context) (b []byte, err error) {
	stop := context.AfterFunc(ctx, func() { s.file.SetReadDeadline(time.Unix(1, 0)) })
	if ctx.Err() == nil {
		waited := s.raw.Read(func(fd uintptr) bool {
			b, err = s.read(int(fd))
			return !errors.Is(err, unix.EAGAIN)
		})
		if waited != nil {
			err = fmt.Errorf("receive from the kernel: %w", waited)
		}
	}
	if !stop() { // the deadline has passed for later calls too
		return nil, ctx.Err()
	}
	return b, err
}

// poll is receive without waiting: if there is nothing to receive the error is EAGAIN.
func (s *socket) poll() (b []byte, err error) {
	if e := s.raw.Control(func(fd uintptr) { b, err = s.read(int(fd)) }); e != nil {
		err = e
	}
	return b, err
}

func (s *socket) read(fd int) ([]byte, error) {
	for {
		n, _, flags, from, err := unix.Recvmsg(fd, s.buf, nil, unix.MSG_DONTWAIT)
		switch sa, ok := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("receive from the kernel: %w", err)
		case flags&unix.MSG_TRUNC != 0:
			return nil, fmt.Errorf("receive from the kernel: a datagram larger than %d bytes", len(s.buf))
		case ok && sa.Pid == 0: // other processes may send to the socket too
			return s.buf[:n], nil
		}
	}
}

func (s *socket) close() error { return s.file.Close() }
