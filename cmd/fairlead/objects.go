package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/fwdtext"
	"github.com/fairlead/fairlead/internal/kube"
)

// offline is what trace, render and dump share: the daemon's flags, and the table that a node with
// these flags compiles from objects in files, or a table that dump wrote.
type offline struct {
	cfg   *config.Config
	local []netip.Addr
	// tablePath is the file that holds the table; empty to compile objects.
	tablePath string

	table    fwd.Table
	problems map[fwd.Service][]compile.Problem
}

// bind registers the daemon's flags and the flags that all these commands add.
func (o *offline) bind(fs *pflag.FlagSet) {
	o.cfg = config.Default()
	o.cfg.Bind(fs)
	fs.Var(fs.Lookup("hostname-override").Value, "node", "the same as --hostname-override; not needed if the objects have one Node")
	fs.Func("local-addresses", "comma-separated addresses that the node has besides those of its Node object", func(s string) error {
		for part := range strings.SplitSeq(s, ",") {
			a, err := netip.ParseAddr(strings.TrimSpace(part))
			if err != nil {
				return errors.New("want IP addresses separated by commas")
			}
			o.local = append(o.local, a.Unmap())
		}
		return nil
	})
}

// bindTable registers the flag for a table instead of objects.
func (o *offline) bindTable(fs *pflag.FlagSet) {
	fs.StringVar(&o.tablePath, "table", "", "`file` with a forwarding table as printed by fairlead dump, instead of --objects; - for standard input")
}

// loadTable reads a table that dump wrote. Flags about the node are not used: the table has the
// facts.
func (o *offline) loadTable(s streams) error {
	if o.cfg.Objects != "" {
		return errors.New("--table and --objects: use only one of them")
	}
	err := o.cfg.Settle(nil)
	printNotes(o.cfg, s)
	if err != nil {
		return err
	}
	file := os.Stdin
	if o.tablePath != "-" {
		if file, err = os.Open(o.tablePath); err != nil {
			return fmt.Errorf("--table: %w", err)
		}
		defer file.Close()
	}
	table, err := fwdtext.Read(file)
	if err != nil {
		return fmt.Errorf("--table %s: %w", o.tablePath, err)
	}
	o.table = *table
	return nil
}

// load reads the objects and compiles them into the table, or reads the table.
func (o *offline) load(s streams) error {
	if o.tablePath != "" {
		return o.loadTable(s)
	}
	if o.cfg.Objects == "" {
		return errors.New("--objects \"\": want a file or directory of API objects")
	}
	err := o.cfg.Settle(nil)
	printNotes(o.cfg, s)
	if err != nil {
		return err
	}
	if o.cfg.NodeName == "" {
		name, err := onlyNode(o.cfg.Objects)
		if err != nil {
			return err
		}
		o.cfg.NodeName = name
	}
	level := slog.LevelInfo
	if o.cfg.NodeName == "" {
		level = slog.LevelWarn // suppresses the reader's note that it has no Node, which is said below
	}
	log := notesLogger(s, level)
	store, err := kube.LoadFiles(o.cfg.Objects, o.cfg.NodeName, converter(o.cfg), log)
	if err != nil {
		return err
	}
	node := store.Node()
	if o.cfg.DetectMode == config.DetectNodeCIDR && len(node.PodCIDRs) == 0 {
		return fmt.Errorf("node %q has no podCIDR among the objects, which --detect-local-mode NodeCIDR needs", o.cfg.NodeName)
	}
	if node.Name == "" {
		fmt.Fprintln(s.err, "note: there is no Node among the objects and no --node: no endpoint counts as local to this node")
	}
	o.fill(store, node)
	return nil
}

// printNotes is logNotes for commands that have no log.
func printNotes(c *config.Config, s streams) {
	for _, n := range c.Notes() {
		fmt.Fprintf(s.err, "note: %s\n", n)
	}
}

// fill compiles all objects into the table.
func (o *offline) fill(store *cluster.Store, node cluster.Node) {
	h := o.cfg.Header(node, append(o.local, node.Addrs...))
	o.cfg.SetServiceCIDRs(&h, store.ServiceCIDRs())
	o.table.SetHeader(h)
	facts := o.cfg.Facts(node)
	o.problems = make(map[fwd.Service][]compile.Problem)
	for _, name := range store.TakeDirty() {
		svc := store.Service(name)
		if svc == nil {
			continue
		}
		f, problems := compile.Compile(svc, store.Slices(name), &facts)
		o.table.Put(f)
		if len(problems) > 0 {
			o.problems[name] = problems
		}
	}
}

func converter(c *config.Config) kube.Converter {
	return kube.Converter{AllLBIPsAreVIPs: !c.Gates.LoadBalancerIPMode, ServiceProxyName: c.ServiceProxyName}
}
