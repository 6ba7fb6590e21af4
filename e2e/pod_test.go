package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
)

// kubelet runs the containers of a pod on a node like the kubelet and a container runtime, in the
// image's file system: arguments, environment, ConfigMaps, the account's token, privileges.
type kubelet struct {
	c    *cluster
	node *lab.Node
	// root is the image's file system.
	root string
	// dir is the directory of mounted files.
	dir string
}

// container sets up the mounts of a container and runs the words after the first three in them.
// What is not mounted is missing: above all /sys, which belongs to the machine.
const container = `set -e
root=$1 privileged=$2 mounts=$3; shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t tmpfs tmpfs "$root/run"
touch "$root/run/xtables.lock"
for m in $mounts; do mount --bind "${m%%:*}" "$root${m#*:}"; done
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
if [ "$privileged" = false ]; then
	mount --bind "$root/proc/sys" "$root/proc/sys"
	mount -o remount,bind,ro "$root/proc/sys"
fi
mount --bind /dev "$root/dev"
exec "$@"
`

// accountDir is where the kubelet puts the token of the pod's account.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

func newKubelet(t *testing.T, c *cluster) *kubelet {
	t.Helper()
	k := &kubelet{c: c, node: c.lab.Nodes[0], root: filepath.Join(t.TempDir(), "root"), dir: t.TempDir()}
	makeRootfs(t, k.root, c.binary)
	must(t, os.MkdirAll(filepath.Join(k.root, accountDir), 0o755)) // runtimes make mount points
	must(t, os.MkdirAll(filepath.Join(k.root, "etc/fairlead"), 0o755))
	return k
}

// token requests a token of an account, like the kubelet.
func (k *kubelet) token(t *testing.T, account string) string {
	t.Helper()
	r, err := k.c.client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).CreateToken(t.Context(), account,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](3600)}}, metav1.CreateOptions{})
	must(t, err)
	return r.Status.Token
}

// command returns the command that runs a container of the pod on the node.
func (k *kubelet) command(t *testing.T, pod *corev1.PodSpec, c *corev1.Container) []string {
	t.Helper()
	var mounts []string
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		mounts = append(mounts, k.account(t, pod)+":"+accountDir)
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Fatalf("container %s: there is no volume %s", c.Name, m.Name)
		}
		if source := pod.Volumes[i].ConfigMap; source != nil {
			mounts = append(mounts, k.configMap(t, source.Name)+":"+m.MountPath)
		}
	}
	env := k.environment(t, c)
	var values []string
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		values = append(values, "$("+name+")", value)
	}
	expand := strings.NewReplacer(values...)
	words := []string{"unshare", "--mount", "sh", "-c", container, "sh", k.root, fmt.Sprint(privileged(c)), strings.Join(mounts, " ")}
	words = append(append(words, "env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin"), env...)
	if !privileged(c) {
		caps := "-all,+sys_chroot"
		for _, a := range c.SecurityContext.Capabilities.Add {
			caps += ",+" + strings.ToLower(string(a))
		}
		words = append(words, "setpriv", "--bounding-set="+caps, "--no-new-privs")
	}
	words = append(words, "chroot", k.root)
	command := c.Command
	if len(command) == 0 {
		command = []string{"/usr/local/bin/fairlead"} // the image's entry point
	}
	for _, w := range append(slices.Clone(command), c.Args...) {
		words = append(words, expand.Replace(w))
	}
	return words
}

func privileged(c *corev1.Container) bool {
	return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
}

// account creates the directory with the token of the pod's account.
func (k *kubelet) account(t *testing.T, pod *corev1.PodSpec) string {
	t.Helper()
	rc, err := k.c.api.RESTConfig(apiserver.Admin)
	must(t, err)
	return k.directory(t, map[string]string{"ca.crt": string(rc.CAData), "token": k.token(t, pod.ServiceAccountName), "namespace": metav1.NamespaceSystem})
}

func (k *kubelet) configMap(t *testing.T, name string) string {
	t.Helper()
	cm, err := k.c.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	return k.directory(t, cm.Data)
}

func (k *kubelet) directory(t *testing.T, files map[string]string) string {
	t.Helper()
	dir, err := os.MkdirTemp(k.dir, "")
	must(t, err)
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

// environment is that of a container, as NAME=VALUE. Like kubelet's it names the API server's
// Service first, which nobody serves here.
func (k *kubelet) environment(t *testing.T, c *corev1.Container) []string {
	t.Helper()
	env := []string{"KUBERNETES_SERVICE_HOST=" + lab.ServiceCIDRs[0].Addr().Next().String(), "KUBERNETES_SERVICE_PORT=443"}
	for _, e := range c.Env {
		value := e.Value
		switch from := e.ValueFrom; {
		case from == nil:
		case from.FieldRef != nil && from.FieldRef.FieldPath == "spec.nodeName":
			value = k.node.Label
		case from.ConfigMapKeyRef != nil:
			cm, err := k.c.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(t.Context(), from.ConfigMapKeyRef.Name, metav1.GetOptions{})
			must(t, err)
			value = cm.Data[from.ConfigMapKeyRef.Key]
		default:
			t.Fatalf("container %s: %s comes from %v", c.Name, e.Name, from)
		}
		env = slices.DeleteFunc(env, func(old string) bool { return strings.HasPrefix(old, e.Name+"=") })
		env = append(env, e.Name+"="+value)
	}
	return env
}

// start runs the pod: its init containers one after the other, then the first container, which it
// returns.
func (k *kubelet) start(t *testing.T, pod *corev1.PodSpec) *daemon.Daemon {
	t.Helper()
	for i := range pod.InitContainers {
		k.run(t, pod, &pod.InitContainers[i])
	}
	words := k.command(t, pod, &pod.Containers[0])
	d, err := daemon.Start(k.node, words[0], words[1:]...)
	must(t, err)
	return d
}

// run runs a container to completion and returns its output.
func (k *kubelet) run(t *testing.T, pod *corev1.PodSpec, c *corev1.Container) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	words := k.command(t, pod, c)
	out, err := k.node.Run(ctx, words[0], words[1:]...)
	if err != nil {
		t.Fatalf("container %s: %v", c.Name, err)
	}
	return out
}

// runInit runs the init containers of a rendered DaemonSet and returns the output of each.
func (k *kubelet) runInit(t *testing.T, a *applier, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	objects := documents(t, text)
	a.put(t, objects)
	pod := daemonSet(t, objects).Spec.Template.Spec
	var said []string
	for i := range pod.InitContainers {
		said = append(said, k.run(t, &pod, &pod.InitContainers[i]))
	}
	if len(said) == 0 {
		t.Fatalf("%s has no init container", file)
	}
	return said
}
