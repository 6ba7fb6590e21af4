package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/fairlead/fairlead/e2e/apiserver"
)

// programs are what a cluster runs, beside what the machine has.
var programs = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "kube-proxy",
	"balancer", "containerd", "containerd-shim-runc-v2", "ctr", "coredns", "agnhost", "regression-issue-74839",
}

// Tools builds the programs that a cluster needs, and those named, where they are not built yet,
// which takes minutes, and returns their directory.
func Tools(ctx context.Context, more ...string) (string, error) {
	return apiserver.Programs(ctx, append(more, programs...)...)
}

// testPackages are what upstream's tests run in their containers.
var testPackages = []string{
	"bash", "bind9-dnsutils", "conntrack", "coreutils", "curl", "dash", "debianutils", "findutils", "gawk", "grep", "hostname", "iproute2", "iputils-ping",
	"libc-bin", "netcat-openbsd", "procps", "sed", "util-linux", "wget",
}

// proxyPackages are what kube-proxy runs.
var proxyPackages = []string{"conntrack", "ipset", "iptables", "kmod", "nftables"}

// recipe says how to fill an image's file system.
type recipe struct {
	name     string
	image    Image
	packages []string
	// programs are copied to these paths.
	programs map[string]string
	// files get this content, and links lead to these names.
	files, links map[string]string
}

const skipAlways = "debconf|dpkg|perl.*|tar"

func recipes(tools string) ([]recipe, error) {
	tool := func(name string) string { return filepath.Join(tools, name) }
	kubernetes := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	dir, err := apiserver.Module()
	if err != nil {
		return nil, err
	}
	kubernetes.Dir = filepath.Join(dir, "e2e/tools")
	kubernetes.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	out, err := kubernetes.Output()
	if err != nil {
		return nil, fmt.Errorf("find the sources of Kubernetes: %w", err)
	}
	agnhost := filepath.Join(string(bytes.TrimSpace(out)), "test/images/agnhost")
	users := map[string]string{
		"etc/passwd": "root:x:0:0:root:/:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n",
		"etc/group":  "root:x:0:\ngroup-defined-in-image:x:50000:user-defined-in-image\n",
		// Where upstream's images keep what clients upload, and scratch files.
		"uploads/.keep": "", "tmp/.keep": "",
	}
	// What Debian's alternatives would link.
	commands := map[string]string{"usr/bin/nc": "nc.openbsd", "usr/bin/awk": "gawk"}
	return []recipe{
		{
			name:     "pause",
			image:    Image{Names: []string{pauseImage}, Entrypoint: []string{"/pause"}},
			programs: map[string]string{"pause": tool("pause")},
		},
		{
			name: "agnhost",
			image: Image{
				Names: []string{
					"registry.k8s.io/e2e-test-images/agnhost:2.63.0", "registry.k8s.io/e2e-test-images/agnhost:2.55",
					"registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0",
				},
				Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
			},
			packages: testPackages,
			programs: map[string]string{
				"agnhost": tool("agnhost"), "agnhost-2": tool("agnhost"), "coredns": tool("coredns"),
				"localhost.crt": filepath.Join(agnhost, "porter/localhost.crt"), "localhost.key": filepath.Join(agnhost, "porter/localhost.key"),
			},
			files: users,
			links: commands,
		},
		{
			name: "busybox",
			image: Image{
				Names: []string{
					"registry.k8s.io/e2e-test-images/busybox:1.36.1-1", "registry.k8s.io/e2e-test-images/busybox:1.37.0-1",
					"registry.k8s.io/build-image/distroless-iptables:v0.9.6",
				},
				Cmd: []string{"sh"},
			},
			packages: testPackages,
			files:    users,
			links:    commands,
		},
		{
			name:     "regression",
			image:    Image{Names: []string{"registry.k8s.io/e2e-test-images/regression-issue-74839:1.4"}, Entrypoint: []string{"/regression-issue-74839"}},
			programs: map[string]string{"regression-issue-74839": tool("regression-issue-74839")},
		},
		{
			name:     "coredns",
			image:    Image{Names: []string{dnsImage}, Entrypoint: []string{"/coredns"}},
			programs: map[string]string{"coredns": tool("coredns")},
		},
		{
			name:     "kube-proxy",
			image:    Image{Names: []string{ProxyImage}, Entrypoint: []string{"/usr/local/bin/kube-proxy"}},
			packages: proxyPackages,
			programs: map[string]string{"usr/local/bin/kube-proxy": tool("kube-proxy")},
		},
	}, nil
}

// The images of a cluster that are not upstream's.
const (
	dnsImage = "registry.example.com/coredns:lab"
	// ProxyImage is upstream's kube-proxy.
	ProxyImage = "registry.example.com/kube-proxy:lab"
	// FairleadImage is Fairlead's, as the Dockerfile makes it.
	FairleadImage = "registry.example.com/fairlead:lab"
)

// Images makes the archives of all images, unless they have been made for these tools before, and
// returns their paths. It has Debian packages fetched.
func Images(ctx context.Context) ([]string, error) {
	tools, err := Tools(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := apiserver.Module()
	if err != nil {
		return nil, err
	}
	pause := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(tools, "pause"), "./e2e/cluster/pause")
	pause.Dir, pause.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := pause.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build pause: %w: %s", err, out)
	}
	all, err := recipes(tools)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, r := range all {
		// A changed recipe makes a new archive.
		sum := sha256.Sum256(fmt.Appendf(nil, "%v", r))
		path := filepath.Join(tools, fmt.Sprintf("%s-%x.tar", r.name, sum[:4]))
		paths = append(paths, path)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := r.make(ctx, dir, path); err != nil {
			return nil, fmt.Errorf("make the image %s: %w", r.name, err)
		}
	}
	return paths, nil
}

// make fills a file system and packs it.
func (r recipe) make(ctx context.Context, source, path string) error {
	scratch, err := os.MkdirTemp(filepath.Dir(path), "image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	r.image.Root = filepath.Join(scratch, "root")
	if len(r.packages) > 0 {
		args := append([]string{r.image.Root, runtime.GOARCH, skipAlways}, r.packages...)
		cmd := exec.CommandContext(ctx, filepath.Join(source, "hack/image/unpack"), args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("unpack packages: %w: %s", err, out)
		}
	}
	for to, from := range r.programs {
		if err := install(from, r.image.Root, to); err != nil {
			return err
		}
	}
	for name, content := range r.files {
		name = filepath.Join(r.image.Root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	for name, to := range r.links {
		if err := os.Symlink(to, filepath.Join(r.image.Root, name)); err != nil {
			return err
		}
	}
	return r.image.replace(path)
}

// replace writes the archive under a temporary name first, so that half an archive is never used.
func (i Image) replace(path string) error {
	if err := i.Write(path + ".new"); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	return os.Rename(path+".new", path)
}

// FairleadArchive makes the archive of Fairlead's image from this source, in the directory.
func FairleadArchive(ctx context.Context, dir string) (string, error) {
	module, err := apiserver.Module()
	if err != nil {
		return "", err
	}
	binary, root, path := filepath.Join(dir, "fairlead"), filepath.Join(dir, "root"), filepath.Join(dir, "fairlead.tar")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "./cmd/fairlead")
	build.Dir, build.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build fairlead: %w: %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, filepath.Join(module, "hack/image/rootfs"), root, binary).CombinedOutput(); err != nil {
		return "", fmt.Errorf("make the image's root: %w: %s", err, out)
	}
	image := Image{Names: []string{FairleadImage}, Root: root, Entrypoint: []string{"/usr/local/bin/fairlead"}}
	return path, errors.Join(image.Write(path), os.RemoveAll(root))
}
