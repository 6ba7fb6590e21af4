package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/host/nodelock"
	"github.com/fairlead/fairlead/internal/instance"
	"github.com/fairlead/fairlead/internal/kube"
)

// reasonStandby is the reason of the Event on the Node that another process of the instance works on it.
const reasonStandby = "Standby"

const (
	// standbyHint is how often a process that waits for the lock says so.
	standbyHint = 5 * time.Minute
	// standbyPause is the shortest time between two attempts to take it.
	standbyPause = time.Second
)

// isVIPDevice says whether the addresses of a device are Services', of whatever instance.
func isVIPDevice(name string) bool {
	_, ok := instance.OfDevice(name)
	return ok
}

// standby is what a process is while another one of its instance works on the node.
type standby struct {
	// holder says who that is; nil while we work ourselves.
	holder atomic.Pointer[string]
}

// note is a sentence for /readyz, empty for none.
func (s *standby) note() string {
	by := s.holder.Load()
	if by == nil {
		return ""
	}
	return "on standby: another fairlead of this instance works on this node, and the kernel is not touched until it ends (" + *by + ")"
}

// waiting says that another process works on the node in our place.
func (s *standby) waiting() bool { return s.holder.Load() != nil }

// process is what we say of ourselves to others on the node.
func process(cfg *config.Config) nodelock.Process {
	return nodelock.Process{Instance: cfg.ServiceProxyName, Mode: string(cfg.Mode), Version: version()}
}

// claim makes this process the only one of its instance on the node. While there is another one it waits: two would undo each
// other's rules, and to end would be a crash loop where an update starts the new Pod before the old one ends. The kernel is not touched
// until then. onWait is called once before it waits. The lock is nil where there is none to be had, which is logged.
func claim(ctx context.Context, cfg *config.Config, s *standby, onWait func(), recorder *kube.Recorder, log *slog.Logger) (*nodelock.Lock, error) {
	name, self := instance.Of(cfg.ServiceProxyName).Table(), process(cfg)
	var told time.Time
	for {
		lock, err := nodelock.Acquire(ctx, name, self)
		var held *nodelock.HeldError
		switch {
		case ctx.Err() != nil:
			if lock != nil {
				lock.Release()
			}
			return nil, ctx.Err()
		case err == nil:
			if s.waiting() {
				log.Info("the other fairlead has ended, taking over")
			}
			return lock, nil
		case !errors.As(err, &held):
			log.Warn("cannot make sure that no other fairlead of this instance works on this node, going on without", "error", err)
			return nil, nil
		}
		by := held.By.String()
		if !s.waiting() {
			const message = "another fairlead of this instance works on this node: waiting until it ends, the kernel is not touched." +
				" To run both, give one of them a --service-proxy-name of its own"
			recorder.Node(true, reasonStandby, fmt.Sprintf("%s (holder: %s)", message, by))
			log.Warn(message, "holder", by, "lock", "@"+name)
			told = time.Now()
			s.holder.Store(&by)
			onWait()
		}
		s.holder.Store(&by)
		if time.Since(told) >= standbyHint {
			log.Warn("still waiting for the other fairlead of this instance to end", "holder", by, "lock", "@"+name)
			told = time.Now()
		}
		pause := time.NewTimer(standbyPause)
		hint, cancel := context.WithTimeout(ctx, standbyHint)
		_ = nodelock.Wait(hint, name, self) // whatever its outcome is, the next attempt tells
		cancel()
		// At once if that was the holder's end.
		if _, still, err := nodelock.Look(ctx, name); still || err != nil {
			select {
			case <-ctx.Done():
			case <-pause.C:
			}
		}
		pause.Stop()
	}
}

// sharedNode says which other instances of Fairlead work on the node now.
func sharedNode(ctx context.Context, id instance.ID, log *slog.Logger) bool {
	names, err := nodelock.Held(instance.ID(0).Table())
	if err != nil {
		log.Warn("cannot look for other instances of fairlead on this node", "error", err)
		return false
	}
	shared := false
	for _, name := range names {
		other, ok := instance.OfTable(name)
		if !ok || other == id {
			continue
		}
		if p, held, err := nodelock.Look(ctx, name); err == nil && held {
			log.Info("another instance of fairlead works on this node", "instance", p.Instance, "process", p.String())
			shared = true
		}
	}
	return shared
}

// meetOthers tells the other instances on the node of us, and hears of them, until the context ends. Only the one without a name
// does anything to addresses that no Service of its own has, so only it has to know.
func meetOthers(ctx context.Context, cfg *config.Config, lock *nodelock.Lock, share func(), log *slog.Logger) {
	id := instance.Of(cfg.ServiceProxyName)
	var visit sync.WaitGroup
	defer visit.Wait()
	if id != 0 {
		visit.Go(func() { nodelock.Visit(ctx, instance.ID(0).Table(), process(cfg)) })
	}
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-lock.Visitors():
			if instance.Of(p.Instance) == id {
				log.Info("another fairlead of this instance waits for this one to end", "process", p.String())
				continue
			}
			log.Info("another instance of fairlead works on this node", "instance", p.Instance, "process", p.String())
			share()
		}
	}
}

// applied brings changes of the configuration to those who work with it.
type applied struct {
	store func(*config.Config)
	to    chan<- *config.Config

	mu      sync.Mutex // guards what follows, and the order of changes
	current *config.Config
}

// set brings a configuration into force. That the node is shared is no part of it, and stays.
func (a *applied) set(ctx context.Context, c *config.Config) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.NodeShared = a.current.NodeShared
	a.sendLocked(ctx, c)
}

// share notes that another instance works on the node. It is for good: one that is restarted has its rules in force meanwhile.
func (a *applied) share(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current.NodeShared {
		return
	}
	c := *a.current
	c.NodeShared = true
	a.sendLocked(ctx, &c)
}

func (a *applied) sendLocked(ctx context.Context, c *config.Config) {
	a.current = c
	a.store(c)
	select {
	case a.to <- c:
	case <-ctx.Done():
	}
}
