package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/fwd"
)

const renderUsage = `fairlead render --objects FILE [flags]
  fairlead render --table FILE [flags]

Prints the kernel program that the daemon writes on the node, in the syntax of the mode's own tool. The same objects and
flags give the same bytes. All flags of the daemon are accepted.`

func runRender(_ context.Context, args []string, s streams) error {
	var o offline
	fs := pflag.NewFlagSet("fairlead render", pflag.ContinueOnError)
	o.bind(fs)
	o.bindTable(fs)
	only := fs.String("family", "", "ipv4 or ipv6; default both")
	if err := parseFlags(fs, args, renderUsage, s); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("argument %q: want flags only", fs.Arg(0))
	}
	families := fwd.Families[:]
	switch *only {
	case "":
	case "ipv4":
		families = []fwd.Family{fwd.IPv4}
	case "ipv6":
		families = []fwd.Family{fwd.IPv6}
	default:
		return fmt.Errorf("--family %q: want ipv4 or ipv6", *only)
	}
	if err := o.load(s); err != nil {
		return err
	}
	for _, f := range families {
		if _, err := fmt.Fprintf(s.out, "# %s\n", f); err != nil {
			return err
		}
		if err := modeOf(o.cfg).render(s.out, o.cfg, f, &o.table); err != nil {
			return fmt.Errorf("render %s: %w", f, err)
		}
	}
	return nil
}
