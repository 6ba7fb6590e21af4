package filewatch

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// TestWatchSurvivesItsDirectory proves that changes are reported after the directory of the file
// was removed and created again.
func TestWatchSurvivesItsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	path := filepath.Join(dir, "file")
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	contents, done := make(chan string, 100), make(chan error, 1)
	go func() {
		done <- Watch(ctx, path, nil, func() {
			text, _ := os.ReadFile(path)
			contents <- string(text)
		})
	}()
	until := func(want string) {
		t.Helper()
		for got := range contents {
			if got == want {
				return
			}
		}
	}
	until("1")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	until("")
	write("2")
	until("2")
	write("3")
	until("3")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWatchWithoutDirectory(t *testing.T) {
	err := Watch(t.Context(), filepath.Join(t.TempDir(), "missing", "file"), nil, func() { t.Error("changed was called") })
	if err == nil {
		t.Error("a file whose directory does not exist is no error")
	}
}
