package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// xstateSource is the library that the kernel needs on processors with a large register file; the file says why.
//
//go:embed preload/xstate.c
var xstateSource []byte

// preload compiles the library that linux.uml needs, unless the user's cache has it already, and returns its path. The path is
// empty where the processor is of a kind that needs none.
func preload(ctx context.Context) (string, error) {
	if runtime.GOARCH != "amd64" {
		return "", nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the directory for the library of %s: %w", kernel, err)
	}
	return compile(ctx, cache, xstateSource)
}

// compile makes a shared library of one C file below the cache directory, in a directory that is named after the source as
// those of hack/build-servers.sh are, and returns its path.
func compile(ctx context.Context, cache string, source []byte) (string, error) {
	dir := filepath.Join(cache, "fairlead", fmt.Sprintf("uml-%.6x", sha256.Sum256(source)))
	library := filepath.Join(dir, "xstate.so")
	if _, err := os.Stat(library); err == nil {
		return library, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Another run may compile it at the same time, and one that is interrupted must not leave half of it.
	temporary, err := os.MkdirTemp(dir, "build.")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temporary)
	built := filepath.Join(temporary, "xstate.so")
	gcc := exec.CommandContext(ctx, "gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-x", "c", "-o", built, "-", "-ldl")
	gcc.Stdin = bytes.NewReader(source)
	if out, err := gcc.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = fmt.Errorf("%w; install it with hack/deps.sh uml", err)
		}
		return "", fmt.Errorf("compile the library that %s needs (hack/uml/preload/xstate.c): %w\n%s", kernel, err, bytes.TrimSpace(out))
	}
	if err := os.Rename(built, library); err != nil {
		return "", err
	}
	return library, nil
}
