package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	out, err := run(os.Args[1:])
	if err == nil {
		_, err = os.Stdout.Write(out)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "manifests: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) ([]byte, error) {
	if len(args) >= 2 {
		switch args[0] {
		case "kustomize":
			return kustomization(args[1], args[2:])
		case "chart":
			return chart(args[1], args[2:])
		}
	}
	return nil, errors.New("usage: manifests kustomize DIRECTORY [COMPONENT...] | manifests chart DIRECTORY [VALUES...]")
}
