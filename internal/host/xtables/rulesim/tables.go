package rulesim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/fairlead/fairlead/internal/host/xtables"
)

// Tables is an xtables.Interface with a Ruleset in place of the kernel. It is safe for concurrent
// use.
type Tables struct {
	// Hook, if set, is called at the start of each Restore. If it returns an error, nothing is
	// written.
	Hook func(input []byte) error
	// Rules are the tables.
	Rules *Ruleset

	mu sync.Mutex // guards Rules
}

var errRefused = errors.New("exit status 1")

// Read implements xtables.Interface.
func (t *Tables) Read(ctx context.Context, table string) (xtables.Table, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read table %s: %w", table, err)
	}
	return xtables.ParseTable(bytes.NewReader([]byte(t.Save(table))), table)
}

// Restore implements xtables.Interface.
func (t *Tables) Restore(ctx context.Context, input []byte) error {
	if err := ctx.Err(); err != nil {
		return &xtables.RestoreError{Transient: true, Err: err}
	}
	if t.Hook != nil {
		if err := t.Hook(input); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.Rules.Restore(string(input))
	var refused *Refusal
	if errors.As(err, &refused) {
		return &xtables.RestoreError{Line: refused.Line, LineText: refused.Text, Stderr: err.Error(), Err: errRefused}
	}
	return err
}

// Save prints tables as Ruleset.Save does.
func (t *Tables) Save(tables ...string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Rules.Save(tables...)
}
