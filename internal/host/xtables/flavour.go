package xtables

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// Flavour names a userland. All rules of a node must be written by the same one: the rules of both
// flavours apply at the same time, and their relative order is not defined by the rules.
type Flavour string

// The flavours.
const (
	// Legacy uses ip_tables in the kernel (iptables-legacy).
	Legacy Flavour = "legacy"
	// NFT uses nf_tables in the kernel (iptables-nft).
	NFT Flavour = "nft"
	// Plain is the userland of a node that only has an iptables without a suffix. It may be either
	// of the others.
	Plain Flavour = "plain"
)

// command returns the name of a binary: main has suffix "", the others "save" and "restore".
func (f Flavour) command(ipv6 bool, suffix string) string {
	name := "iptables"
	if ipv6 {
		name = "ip6tables"
	}
	if f != Plain {
		name += "-" + string(f)
	}
	if suffix != "" {
		name += "-" + suffix
	}
	return name
}

// Installed returns the flavours to use for finding everything that is in the kernel. If the others
// are installed, an iptables without a suffix is one of them.
func Installed() []Flavour {
	for _, fl := range []Flavour{NFT, Legacy} {
		if installed(Host{}, fl, false) == nil {
			return []Flavour{NFT, Legacy}
		}
	}
	return []Flavour{Plain}
}

// Finder finds and runs programs. Host is the real one.
type Finder interface {
	// LookPath returns the path of a program. The error is exec.ErrNotFound if there is none.
	LookPath(name string) (string, error)
	// Run runs a program and writes its output to stdout. The error contains its messages on
	// stderr.
	Run(ctx context.Context, stdout io.Writer, path string, args ...string) error
}

// Host runs the programs of this machine.
type Host struct{}

// LookPath searches $PATH.
func (Host) LookPath(name string) (string, error) { return exec.LookPath(name) }

// Run runs the program with messages in English.
func (Host) Run(ctx context.Context, stdout io.Writer, path string, args ...string) error {
	res := run(ctx, nil, stdout, path, args...)
	return res.err()
}

// ErrNotInstalled is the error of Detect if no flavour of iptables is installed.
var ErrNotInstalled = errors.New("no iptables found: install the iptables package (iptables-nft or iptables-legacy, with -save and -restore)")

// Detect finds the flavour that this node uses. why gives the reason in a few words.
//
// If only one userland is installed and can read its rules, it is that one. Otherwise it is, in
// this order: the flavour with kubelet's hint chain in table mangle (KEP-3178), nft first; the
// flavour with more rules, counting both families; nft. The container in which this runs may have
// both flavours, whatever the node has.
func Detect(ctx context.Context, f Finder) (flavour Flavour, why string, err error) {
	// Reading all rules of the nft flavour takes seconds if there are many, so read only its table
	// mangle first.
	nft, nftErr := look(ctx, f, NFT, "-t", "mangle")
	if nftErr == nil && nft.hint != "" {
		return NFT, "it has kubelet's chain " + nft.hint, nil
	}
	legacy, legacyErr := look(ctx, f, Legacy)
	switch {
	case ctx.Err() != nil:
		return "", "", fmt.Errorf("detect the flavour of iptables: %w", ctx.Err())
	case nftErr == nil && legacyErr == nil:
		return choose(ctx, f, legacy)
	case nftErr == nil:
		return NFT, alone(legacyErr), nil
	case legacyErr == nil:
		return Legacy, alone(nftErr), nil
	case !errors.Is(nftErr, exec.ErrNotFound) || !errors.Is(legacyErr, exec.ErrNotFound):
		return "", "", fmt.Errorf("detect the flavour of iptables: %w", errors.Join(nftErr, legacyErr))
	case installed(f, Plain, false) == nil:
		return Plain, "only an iptables without a suffix is installed", nil
	}
	return "", "", ErrNotInstalled
}

// alone gives the reason why the other flavour cannot be used.
func alone(other error) string {
	if errors.Is(other, exec.ErrNotFound) {
		return "it is the only one installed"
	}
	return fmt.Sprintf("the other cannot be read: %v", other)
}

// choose decides if both flavours can be read and nft has no hint chain of kubelet.
func choose(ctx context.Context, f Finder, legacy survey) (Flavour, string, error) {
	switch {
	case legacy.hint != "":
		return Legacy, "it has kubelet's chain " + legacy.hint, nil
	case legacy.rules == 0:
		return NFT, "legacy has no rules", nil
	}
	nft, err := look(ctx, f, NFT)
	if err != nil {
		return "", "", fmt.Errorf("count the rules of iptables-nft: %w", err)
	}
	if legacy.rules > nft.rules {
		return Legacy, fmt.Sprintf("it has %d rules, nft has %d", legacy.rules, nft.rules), nil
	}
	return NFT, fmt.Sprintf("it has %d rules, legacy has %d", nft.rules, legacy.rules), nil
}

// installed returns an error if one of the three programs of a flavour is missing.
func installed(f Finder, fl Flavour, ipv6 bool) error {
	for _, suffix := range []string{"", "save", "restore"} {
		if _, err := f.LookPath(fl.command(ipv6, suffix)); err != nil {
			return err
		}
	}
	return nil
}

// survey is what one flavour has in both families.
type survey struct {
	flavour Flavour
	hint    string // the name of kubelet's hint chain, if it exists
	rules   int
}

// look reads what one flavour has; args limit it to a table. It must not be called with a legacy
// table, which the kernel would create.
func look(ctx context.Context, f Finder, fl Flavour, args ...string) (survey, error) {
	s := survey{flavour: fl}
	if err := installed(f, fl, false); err != nil {
		return s, err
	}
	for _, ipv6 := range []bool{false, true} {
		path, err := f.LookPath(fl.command(ipv6, "save"))
		if err != nil {
			continue // IPv6 may be missing
		}
		if err := f.Run(ctx, lineWriter(s.line()), path, args...); err != nil {
			if ipv6 { // a kernel without IPv6 refuses this family alone
				continue
			}
			return s, fmt.Errorf("%s: %w", path, err)
		}
	}
	return s, nil
}

// line returns a function that counts lines of iptables-save.
func (s *survey) line() func([]byte) {
	mangle := false
	return func(l []byte) {
		switch {
		case len(l) == 0:
		case l[0] == '*':
			mangle = string(l) == "*mangle"
		case l[0] == ':' && mangle && s.hint == "":
			switch name, _, _ := strings.Cut(string(l[1:]), " "); name {
			case "KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY":
				s.hint = name
			}
		case bytes.HasPrefix(l, []byte("-A ")):
			s.rules++
		}
	}
}

// lineWriter returns a Writer that calls each for each complete line. It keeps at most one line.
func lineWriter(each func([]byte)) io.Writer { return &lines{each: each} }

type lines struct {
	each func([]byte)
	rest []byte
}

func (w *lines) Write(p []byte) (int, error) {
	n := len(p)
	for {
		advance, line, _ := bufio.ScanLines(p, false)
		if advance == 0 {
			w.rest = append(w.rest, p...)
			return n, nil
		}
		if len(w.rest) > 0 {
			line = append(w.rest, line...)
		}
		w.each(line)
		w.rest, p = w.rest[:0], p[advance:]
	}
}
