package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// file is one of an initramfs: its path there, and the file with its content.
type file struct{ name, from string }

// writeArchive writes an archive that the kernel unpacks as its first file system: cpio in the
// format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst), with the directories
// of the files.
func writeArchive(path string, files []file) (err error) {
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	w := bufio.NewWriter(to)
	var inode int
	entry := func(name string, mode uint32, size int64, content io.Reader) error {
		inode++
		name = strings.TrimPrefix(name, "/")
		// Magic, inode, mode, user, group, links, time, size, four numbers of devices, length of
		// the name, no checksum.
		head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
		if _, err := w.WriteString(head + pad(int64(len(head)))); err != nil {
			return err
		}
		if n, err := io.Copy(w, io.LimitReader(content, size)); err != nil || n != size {
			return fmt.Errorf("%s: %d of %d bytes: %w", name, n, size, err)
		}
		_, err := w.WriteString(pad(size))
		return err
	}
	made := make(map[string]bool)
	var directory func(name string) error
	directory = func(name string) error {
		if name == "/" || made[name] {
			return nil
		}
		made[name] = true
		if err := directory(filepath.Dir(name)); err != nil {
			return err
		}
		return entry(name, 0o040755, 0, strings.NewReader(""))
	}
	for _, f := range files {
		if err := directory(filepath.Dir(f.name)); err != nil {
			return err
		}
		if err := add(f, entry); err != nil {
			return err
		}
	}
	if err := entry("TRAILER!!!", 0, 0, strings.NewReader("")); err != nil {
		return err
	}
	return w.Flush()
}

// add hands a regular file to entry.
func add(f file, entry func(name string, mode uint32, size int64, content io.Reader) error) error {
	from, err := os.Open(f.from)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	return entry(f.name, 0o100755, info.Size(), from)
}

// pad is what makes a length a multiple of four.
func pad(n int64) string { return "\x00\x00\x00"[:-n&3] }
