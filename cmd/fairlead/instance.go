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

// reasonStandby is the reason of the Event on the Node that another process of the instance works
// on it.
const reasonStandby = "Standby"

const (
	// standbyReminder is the time between two log lines of a process that waits for the lock.
	standbyReminder = 5 * time.Minute
	// standbyPause is the minimum time between two attempts to take it.
	standbyPause = time.Second
)

// isVIPDevice says whether a device has the addresses of Services, of any instance.
func isVIPDevice(name string) bool {
	_, ok := instance.OfDevice(name)
	return ok
}

// process describes this process to others on the node.
func process(cfg *config.Config) nodelock.Process {
	return nodelock.Process{Instance: cfg.ServiceProxyName, Mode: string(cfg.Mode), Version: version()}
}

// claim makes this process the only one of its instance on the node. While there is another one it
// waits and does not touch the kernel: two would undo each other's rules, and exiting would be a
// crash loop when an update starts the new Pod before the old one ends. onWait is called with a
// note for /readyz whenever it begins to wait. The lock is nil if none can be made, which is
// logged.
func claim(ctx context.Context, cfg *config.Config, onWait func(note string), recorder *kube.Recorder, log *slog.Logger) (*nodelock.Lock, error) {
	name, self := instance.Of(cfg.ServiceProxyName).Table(), process(cfg)
	var logged time.Time // zero before the first wait
	for {
		lock, err := nodelock.Acquire(ctx, name, self)
		var held *nodelock.HeldError
		switch {
		case ctx.Err() != nil:
			lock.Release()
			return nil, ctx.Err()
		case err == nil:
			if !logged.IsZero() {
				log.Info("the other fairlead has stopped, taking over")
			}
			return lock, nil
		case !errors.As(err, &held):
			log.Warn("cannot make sure that no other fairlead of this instance works on this node, continuing without a lock", "error", err)
			return nil, nil
		}
		by := held.By.String()
		onWait("on standby: another fairlead of this instance works on this node, the kernel is not touched until it stops (" + by + ")")
		switch {
		case logged.IsZero():
			const message = "another fairlead of this instance works on this node: waiting until it stops, the kernel is not touched." +
				" To run both, give one of them its own --service-proxy-name"
			recorder.Node(true, reasonStandby, fmt.Sprintf("%s (holder: %s)", message, by))
			log.Warn(message, "holder", by, "lock", "@"+name)
			logged = time.Now()
		case time.Since(logged) >= standbyReminder:
			log.Warn("still waiting for the other fairlead of this instance to stop", "holder", by, "lock", "@"+name)
			logged = time.Now()
		}
		pause := time.NewTimer(standbyPause)
		reminder, cancel := context.WithTimeout(ctx, standbyReminder)
		_ = nodelock.Wait(reminder, name, self) // the next attempt shows whether the lock is free
		cancel()
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
	}
}

// sharedNode says whether other instances of Fairlead work on the node now.
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
			logInstance(p, log)
			shared = true
		}
	}
	return shared
}

func logInstance(p nodelock.Process, log *slog.Logger) {
	log.Info("another instance of fairlead works on this node", "instance", p.Instance, "process", p.String())
}

// meetOthers announces this instance to the others on the node, and waits for theirs, until the
// context ends. Only the instance without a name acts on addresses that none of its Services has,
// so only that one has to know.
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
				log.Info("another fairlead of this instance waits for this one to stop", "process", p.String())
				continue
			}
			logInstance(p, log)
			share()
		}
	}
}

// settings holds the configuration in force, and passes changes of it to the loop.
type settings struct {
	current atomic.Pointer[config.Config]
	changed chan *config.Config
	mu      sync.Mutex // orders changes
}

func newSettings(cfg *config.Config) *settings {
	s := &settings{changed: make(chan *config.Config)}
	s.current.Store(cfg)
	return s
}

// set applies a configuration. Whether the node is shared is not in it, and stays as it was.
func (s *settings) set(ctx context.Context, c *config.Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.NodeShared = s.current.Load().NodeShared
	s.applyLocked(ctx, c)
}

// share applies that another instance works on the node. That is for good: the rules of an instance
// that restarts stay in force.
func (s *settings) share(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *s.current.Load()
	if c.NodeShared {
		return
	}
	c.NodeShared = true
	s.applyLocked(ctx, &c)
}

func (s *settings) applyLocked(ctx context.Context, c *config.Config) {
	s.current.Store(c)
	select {
	case s.changed <- c:
	case <-ctx.Done():
	}
}
