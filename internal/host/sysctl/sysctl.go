package sysctl

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// FS is a tree of kernel parameters. The zero FS is /proc/sys of the network namespace of the
// calling thread.
type FS struct {
	// Root is the directory of the tree; empty means /proc/sys.
	Root string
}

func (s FS) path(name string) (string, error) {
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("sysctl %q: %w", name, fs.ErrInvalid)
	}
	root := s.Root
	if root == "" {
		root = "/proc/sys"
	}
	return filepath.Join(root, name), nil
}

// Get returns a value without surrounding white space. The error is fs.ErrNotExist if the kernel
// has no such parameter.
func (s FS) Get(name string) (string, error) {
	path, err := s.path(name)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Int returns a value that is one number.
func (s FS) Int(name string) (int, error) {
	v, err := s.Get(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, fmt.Errorf("sysctl %s: %w", name, err)
	}
	return n, nil
}

// Set writes a value. It does not create parameters.
func (s FS) Set(name, value string) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("set sysctl to %q: %w", value, err)
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("set sysctl to %q: %w", value, err)
	}
	return nil
}

// Ensure sets a value unless the parameter has it; values of several numbers are compared number by
// number.
func (s FS) Ensure(name, value string) (changed bool, err error) {
	old, err := s.Get(name)
	if err != nil {
		return false, fmt.Errorf("ensure %q: %w", value, err)
	}
	if slices.Equal(strings.Fields(old), strings.Fields(value)) {
		return false, nil
	}
	if err := s.Set(name, value); err != nil {
		return false, fmt.Errorf("was %q: %w", old, err)
	}
	return true, nil
}
