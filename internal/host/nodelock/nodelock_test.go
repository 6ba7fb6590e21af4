package nodelock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// lockName is a name that no other test has: the machine's network namespace is shared.
func lockName(t *testing.T) string {
	return fmt.Sprintf("fl-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
}

func acquire(t *testing.T, name string, p Process) *Lock {
	t.Helper()
	l, err := Acquire(t.Context(), name, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	return l
}

func TestOnlyOneHoldsALock(t *testing.T) {
	name := lockName(t)
	self := Process{Instance: "two", Mode: "nftables", Version: "v1"}
	if _, held, err := Look(t.Context(), name); held || err != nil {
		t.Fatalf("the lock is free, and Look returns %t, %v", held, err)
	}
	l := acquire(t, name, self)
	_, err := Acquire(t.Context(), name, Process{})
	var held *HeldError
	want := self
	want.PID = os.Getpid()
	if !errors.As(err, &held) || held.By != want || held.Name != name {
		t.Errorf("the second got %v", err)
	}
	if text := held.Error(); !strings.Contains(text, "--service-proxy-name two") || !strings.Contains(text, fmt.Sprint(os.Getpid())) || !strings.Contains(text, "mode nftables") {
		t.Errorf("the error does not say who: %s", text)
	}
	if by, there, err := Look(t.Context(), name); !there || by != want || err != nil {
		t.Errorf("Look: %v, %t, %v", by, there, err)
	}
	if names, err := Held(name); err != nil || !slices.Equal(names, []string{name}) {
		t.Errorf("Held: %v, %v", names, err)
	}
	l.Release()
	if names, err := Held(name); err != nil || len(names) > 0 {
		t.Errorf("Held after the release: %v, %v", names, err)
	}
	acquire(t, name, self)
}

func TestWaitEndsWithTheHolder(t *testing.T) {
	name := lockName(t)
	if err := Wait(t.Context(), name, Process{}); err != nil {
		t.Fatalf("the lock is free: %v", err)
	}
	l := acquire(t, name, Process{})
	waited := make(chan error)
	go func() { waited <- Wait(t.Context(), name, Process{Instance: "w"}) }()
	if p := <-l.Visitors(); p.Instance != "w" || p.PID != os.Getpid() {
		t.Errorf("the holder has the visitor %+v", p)
	}
	select {
	case err := <-waited:
		t.Fatalf("Wait returned %v while the lock was held", err)
	default:
	}
	l.Release()
	if err := <-waited; err != nil {
		t.Error(err)
	}

	acquire(t, name, Process{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { waited <- Wait(ctx, name, Process{}) }()
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

// TestVisitTellsEachHolder has a holder come after the visitor, and another one after that.
func TestVisitTellsEachHolder(t *testing.T) {
	name := lockName(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Visit(ctx, name, Process{Instance: "v", Mode: "ipvs"}); close(done) }()
	for range 2 {
		l := acquire(t, name, Process{})
		if p := <-l.Visitors(); p.Instance != "v" || p.Mode != "ipvs" {
			t.Errorf("heard of %+v", p)
		}
		l.Release()
	}
	acquire(t, name, Process{})
	cancel()
	<-done
}

// TestAHolderThatDoesNotAnswerHolds has a listener that accepts nothing, as the one of a stopped
// process.
func TestAHolderThatDoesNotAnswerHolds(t *testing.T) {
	name := lockName(t)
	s, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = Acquire(t.Context(), name, Process{})
	var held *HeldError
	if !errors.As(err, &held) || held.By != (Process{PID: os.Getpid()}) {
		t.Errorf("got %v", err)
	}
}

func TestOthersSaySomethingElse(t *testing.T) {
	name := lockName(t)
	l := acquire(t, name, Process{Mode: "iptables"})
	for _, text := range []string{"", "\n", "{", "null\n", "[1]\n", strings.Repeat("x", 2*maxHello)} {
		c, err := net.Dial("unix", "@"+name)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(text)) // the holder may have ended the connection
		c.Close()
	}
	if by, held, err := Look(t.Context(), name); !held || by.Mode != "iptables" || err != nil {
		t.Errorf("after that: %v, %t, %v", by, held, err)
	}
	l.Release() // returns: no connection is left
}

// TestASquatterHoldsNothing has another user listen.
func TestASquatterHoldsNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs to be root, to have another user listen")
	}
	name := lockName(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + name}); err != nil {
		t.Fatal(err)
	}
	asUser(t, 65534, func() error { return unix.Listen(fd, 5) })
	if _, err := Acquire(t.Context(), name, Process{}); !errors.Is(err, ErrUntrusted) {
		t.Errorf("Acquire: %v, want %v", err, ErrUntrusted)
	}
	if _, held, err := Look(t.Context(), name); held || !errors.Is(err, ErrUntrusted) {
		t.Errorf("Look: %t, %v, want %v", held, err, ErrUntrusted)
	}
}

// TestAnotherUserIsNotHeard has one visit.
func TestAnotherUserIsNotHeard(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs to be root, to have another user connect")
	}
	name := lockName(t)
	l := acquire(t, name, Process{})
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	asUser(t, 65534, func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: "@" + name}) })
	if n, err := unix.Read(fd, make([]byte, 100)); n != 0 || err != nil {
		t.Errorf("it read %d bytes, %v; want the end of the connection", n, err)
	}
	if len(l.Visitors()) != 0 {
		t.Error("it was heard")
	}
}

// asUser calls fn as another user, in a thread that ends with it.
func asUser(t *testing.T, uid int, fn func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0))
		if errno != 0 {
			done <- errno
			return
		}
		done <- fn()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestKernelNamespacesDoNotMeet takes one lock in two network namespaces.
func TestKernelNamespacesDoNotMeet(t *testing.T) {
	name := lockName(t)
	outside := acquire(t, name, Process{})
	hosttest.Netns(t)
	if names, err := Held(name); err != nil || len(names) > 0 {
		t.Errorf("Held in a namespace of its own: %v, %v", names, err)
	}
	acquire(t, name, Process{})
	outside.Release()
	if _, held, err := Look(t.Context(), name); !held || err != nil {
		t.Errorf("after the end of the other's: %t, %v", held, err)
	}
}

func TestParseHeld(t *testing.T) {
	const list = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 20701 @fairlead
0000000000000000: 00000003 00000000 00000000 0001 03 20702 @fairlead-abcde
0000000000000000: 00000002 00000000 00010000 0001 01 20703 @fairlead-bcdef
0000000000000000: 00000002 00000000 00010000 0001 01 20704 /run/fairlead-x
0000000000000000: 00000002 00000000 00010000 0001 01 20705
0000000000000000: 00000002 00000000 00010000 0001 01 20706 @other
`
	if got, want := parseHeld(list, "fairlead"), []string{"fairlead", "fairlead-bcdef"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
