package cluster

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Image is what an image archive is made from.
type Image struct {
	// Names are references with a tag: registry.example.com/name:tag.
	Names []string
	// Root is the directory with the image's file system.
	Root string
	// Entrypoint and Cmd are as in a Dockerfile.
	Entrypoint, Cmd []string
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Write makes an archive in OCI layout, with one layer, at the path.
// (https://github.com/opencontainers/image-spec/blob/main/image-layout.md)
func (i Image) Write(path string) (err error) {
	layer := path + ".layer"
	defer os.Remove(layer)
	if out, err := exec.Command("tar", "-C", i.Root, "--numeric-owner", "--owner=0", "--group=0", "-cf", layer, ".").CombinedOutput(); err != nil {
		return fmt.Errorf("pack %s: %w: %s", i.Root, err, out)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	diff, err := addLayer(w, layer)
	if err != nil {
		return err
	}
	config, err := addBlob(w, "application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{
			"Entrypoint": i.Entrypoint, "Cmd": i.Cmd,
			"Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diff.Digest}},
	})
	if err != nil {
		return err
	}
	manifest, err := addBlob(w, "application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []descriptor{diff},
	})
	if err != nil {
		return err
	}
	var index []descriptor
	for _, name := range i.Names {
		manifest.Annotations = map[string]string{"io.containerd.image.name": name}
		index = append(index, manifest)
	}
	if err := addJSON(w, "index.json", map[string]any{"schemaVersion": 2, "manifests": index}); err != nil {
		return err
	}
	if err := addJSON(w, "oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}); err != nil {
		return err
	}
	return w.Close()
}

func addLayer(w *tar.Writer, path string) (descriptor, error) {
	f, err := os.Open(path)
	if err != nil {
		return descriptor{}, err
	}
	defer f.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, f)
	if err != nil {
		return descriptor{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return descriptor{}, err
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	if err := w.WriteHeader(&tar.Header{Name: "blobs/sha256/" + sum, Mode: 0o644, Size: size}); err != nil {
		return descriptor{}, err
	}
	_, err = io.Copy(w, f)
	return descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: "sha256:" + sum, Size: size}, err
}

func addBlob(w *tar.Writer, mediaType string, v any) (descriptor, error) {
	content, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(content)
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(content))}
	return d, addFile(w, "blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:"), content)
}

func addJSON(w *tar.Writer, name string, v any) error {
	content, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return addFile(w, name, content)
}

func addFile(w *tar.Writer, name string, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

const pauseImage = "registry.k8s.io/pause:3.10.2"

// install copies a program into an image's file system.
func install(program, root, path string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o755)
}
