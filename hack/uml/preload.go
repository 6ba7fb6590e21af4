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

// xstateSource is a library that the kernel needs on processors with a large register file; see the
// file.
//
//go:embed preload/xstate.c
var xstateSource []byte

// preload returns the path of the library that linux.uml needs, and compiles it unless it is in the
// user's cache. The path is empty if the architecture needs no library.
func preload(ctx context.Context) (string, error) {
	if runtime.GOARCH != "amd64" {
		return "", nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory for the library of %s: %w", kernel, err)
	}
	return compile(ctx, cache, xstateSource)
}

// compile compiles one C file to a shared library below the cache directory, in a directory named
// after a hash of the source, and returns its path.
func compile(ctx context.Context, cache string, source []byte) (string, error) {
	dir := filepath.Join(cache, "fairlead", fmt.Sprintf("uml-%.6x", sha256.Sum256(source)))
	library := filepath.Join(dir, "xstate.so")
	if _, err := os.Stat(library); err == nil {
		return library, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Another run may compile it at the same time, and an interrupted one must not leave an
	// incomplete file.
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
