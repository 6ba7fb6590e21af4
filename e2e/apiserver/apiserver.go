package apiserver

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Host is a network namespace.
type Host interface {
	Do(func() error) error
	Command(ctx context.Context, name string, args ...string) *exec.Cmd
}

// Config configures the servers.
type Config struct {
	// Dir is the directory for data, keys, logs and kubeconfig files; it is not removed.
	Dir string
	// Host is the namespace of the servers, Addr the address on which the apiserver listens.
	Host Host
	Addr netip.Addr
	// ServiceCIDRs contain the cluster IPs, primary family first.
	ServiceCIDRs []netip.Prefix
	// RBAC enables authorization by RBAC objects; otherwise everything is allowed.
	RBAC bool
	// Pods enables service account tokens for pods.
	Pods bool
	// Users are additional users; the token is the name.
	Users []User
	// Flags are additional flags of kube-apiserver.
	Flags []string
}

// User is a user of the apiserver.
type User struct {
	Name   string
	Groups []string
}

// The users that every apiserver has; the token is the name. Admin is in group system:masters.
// Daemon has no permissions without RBAC objects.
const (
	Admin  = "admin"
	Daemon = "system:serviceaccount:kube-system:fairlead"
)

const securePort = 6443

// Server is a running pair of etcd and kube-apiserver.
type Server struct {
	cfg       Config
	processes []*process
}

// process is a started command that is waited for in the background.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// Start creates keys and users and starts both servers.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{cfg: cfg}
	if err := s.writeFiles(); err != nil {
		return nil, fmt.Errorf("prepare an API server: %w", err)
	}
	if err := s.Run(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Run starts both servers again after Close, with their old data, and returns when the apiserver is
// ready.
func (s *Server) Run(ctx context.Context) error {
	if err := s.start(ctx); err != nil {
		return errors.Join(fmt.Errorf("start an API server: %w\n%s", err, s.Logs()), s.Close())
	}
	return nil
}

func (s *Server) start(ctx context.Context) error {
	for _, server := range []struct {
		name string
		args []string
	}{{"etcd", s.etcdArgs()}, {"kube-apiserver", s.apiserverArgs()}} {
		path, err := Binary(server.name)
		if err != nil {
			return err
		}
		if err := s.run(path, server.args); err != nil {
			return err
		}
	}
	return s.awaitReady(ctx)
}

// Binary returns the path of a program that hack/build-servers.sh builds. If it is not built yet,
// that takes minutes.
func Binary(name string) (string, error) {
	dir, err := Programs(context.Background(), name)
	return filepath.Join(dir, name), err
}

// Programs has hack/build-servers.sh build the programs that are not built yet, and returns the
// directory of all of them.
func Programs(ctx context.Context, names ...string) (string, error) {
	module, err := Module()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(module, "hack", "build-servers.sh"), names...)
	cmd.Stderr = os.Stderr
	dir, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build %s: %w", strings.Join(names, ", "), err)
	}
	return string(bytes.TrimSpace(dir)), nil
}

// Module returns the directory of this module's source.
func Module() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module's directory: %w", err)
	}
	return string(bytes.TrimSpace(out)), nil
}

func (s *Server) etcdArgs() []string {
	return []string{
		"--data-dir=" + s.path("etcd"), "--unsafe-no-fsync", "--logger=zap", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
	}
}

func (s *Server) apiserverArgs() []string {
	cidrs := ""
	for i, c := range s.cfg.ServiceCIDRs {
		if i > 0 {
			cidrs += ","
		}
		cidrs += c.String()
	}
	mode := "AlwaysAllow"
	if s.cfg.RBAC {
		mode = "Node,RBAC"
	}
	args := append([]string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=" + s.cfg.Addr.String(), "--advertise-address=" + s.cfg.Addr.String(),
		fmt.Sprintf("--secure-port=%d", securePort), "--cert-dir=" + s.path("certs"),
		"--service-cluster-ip-range=" + cidrs,
		"--authorization-mode=" + mode, "--token-auth-file=" + s.path("tokens.csv"),
		"--service-account-issuer=https://fairlead.test", "--service-account-key-file=" + s.path("sa.key"),
		"--service-account-signing-key-file=" + s.path("sa.key"),
		"--enable-priority-and-fairness=false",
	}, s.cfg.Flags...)
	if !s.cfg.Pods {
		args = append(args, "--disable-admission-plugins=ServiceAccount")
	}
	return args
}

func (s *Server) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

// writeFiles writes the key for service account tokens and the list of users.
func (s *Server) writeFiles() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a service account key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("make a service account key: %w", err)
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(s.path("sa.key"), pemKey, 0o600); err != nil {
		return err
	}
	users := fmt.Sprintf("%s,%s,1,\"system:masters\"\n%s,%s,2,\"system:serviceaccounts\"\n", Admin, Admin, Daemon, Daemon)
	for i, u := range s.cfg.Users {
		users += fmt.Sprintf("%s,%s,%d,%q\n", u.Name, u.Name, 3+i, strings.Join(u.Groups, ","))
	}
	return os.WriteFile(s.path("tokens.csv"), []byte(users), 0o600)
}

func (s *Server) run(name string, args []string) error {
	p := &process{name: filepath.Base(name), log: s.path(filepath.Base(name) + ".log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer log.Close()
	// The processes outlive the context of Start; Close stops them.
	p.cmd = s.cfg.Host.Command(context.Background(), name, args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = s.cfg.Dir, log, log
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	s.processes = append(s.processes, p)
	return nil
}

// readyTimeout is generous: in user-mode Linux on a busy machine the servers take more than a
// minute.
const readyTimeout = 4 * time.Minute

// awaitReady polls /readyz until the apiserver is ready.
func (s *Server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		// The certificate does not exist before the apiserver has started.
		if cfg, err := s.RESTConfig(Admin); err == nil {
			if last = ready(ctx, cfg); last == nil {
				return nil
			}
		}
		for _, p := range s.processes {
			select {
			case <-p.done:
				return fmt.Errorf("%s has ended: %s", p.name, p.cmd.ProcessState)
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for /readyz: %w: %w", ctx.Err(), last)
		case <-tick.C:
		}
	}
}

func ready(ctx context.Context, cfg *rest.Config) error {
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Host+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz: %s", resp.Status)
	}
	return nil
}

// RESTConfig returns a configuration for a user that connects from inside the namespace, without a
// rate limit.
func (s *Server) RESTConfig(user string) (*rest.Config, error) {
	// The file with the apiserver's self-made certificate ends with that of its authority.
	ca, err := os.ReadFile(s.path("certs/apiserver.crt"))
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:            fmt.Sprintf("https://%s", netip.AddrPortFrom(s.cfg.Addr, securePort)),
		BearerToken:     user,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca},
		QPS:             -1,
		WarningHandler:  rest.NoWarnings{},
		Dial: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = s.cfg.Host.Do(func() error {
				c, err = (&net.Dialer{}).DialContext(ctx, network, address)
				return err
			})
			return c, err
		},
	}, nil
}

// Client returns a client set for the user.
func (s *Server) Client(user string) (*kubernetes.Clientset, error) {
	cfg, err := s.RESTConfig(user)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

// Kubeconfig writes a kubeconfig file for the user and returns its path.
func (s *Server) Kubeconfig(user string) (string, error) {
	rc, err := s.RESTConfig(user)
	if err != nil {
		return "", err
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["lab"] = &clientcmdapi.Cluster{Server: rc.Host, CertificateAuthorityData: rc.CAData}
	cfg.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: user}
	cfg.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "user"}
	cfg.CurrentContext = "lab"
	f, err := os.CreateTemp(s.cfg.Dir, "kubeconfig-")
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(f.Close(), clientcmd.WriteToFile(*cfg, f.Name()))
}

// Logs returns the last lines of both servers' logs.
func (s *Server) Logs() string {
	var all bytes.Buffer
	for _, p := range s.processes {
		log, err := os.ReadFile(p.log)
		if err != nil {
			log = []byte(err.Error())
		}
		if len(log) > 4000 {
			log = log[len(log)-4000:]
		}
		fmt.Fprintf(&all, "--- %s\n%s\n", p.name, log)
	}
	return all.String()
}

// Close stops both servers and waits for them. They can be started again with Run.
func (s *Server) Close() error {
	var errs []error
	for i := len(s.processes) - 1; i >= 0; i-- {
		p := s.processes[i]
		// The data is not needed again, so a clean shutdown is not necessary.
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("end %s: %w", p.name, err))
			continue
		}
		<-p.done
	}
	s.processes = nil
	return errors.Join(errs...)
}
