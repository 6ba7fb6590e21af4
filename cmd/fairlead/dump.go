package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/fwdtext"
)

const dumpUsage = `fairlead dump --objects FILE [flags]

Prints the forwarding table that a node compiles from the objects: what happens to each packet. Each object is one line,
so that grep finds all lines about an address or a Service. fairlead trace and fairlead render with the same flags read
the output with --table in place of --objects. Attach it to bug reports. All flags of the daemon are accepted.`

func runDump(_ context.Context, args []string, s streams) error {
	var o offline
	fs := pflag.NewFlagSet("fairlead dump", pflag.ContinueOnError)
	o.bind(fs)
	if err := parseFlags(fs, args, dumpUsage, s); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("argument %q: want flags only", fs.Arg(0))
	}
	if err := o.load(s); err != nil {
		return err
	}
	return fwdtext.Write(s.out, &o.table)
}
