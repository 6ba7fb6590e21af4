package apiserver_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/lab"
)

func TestServer(t *testing.T) {
	l := lab.ForTest(t, 1, 0)
	start := time.Now()
	s, err := apiserver.Start(t.Context(), apiserver.Config{
		Dir: t.TempDir(), Host: l.Fabric, Addr: l.Fabric.Addrs[0], ServiceCIDRs: lab.ServiceCIDRs[:], RBAC: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("ready after %v", time.Since(start))

	c, err := s.Client(apiserver.Admin)
	if err != nil {
		t.Fatal(err)
	}
	dual := corev1.IPFamilyPolicyRequireDualStack
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{IPFamilyPolicy: &dual, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	svc, err = c.CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(svc.Spec.ClusterIPs); got != 2 {
		t.Errorf("a dual-stack Service has got %d cluster IPs, want 2", got)
	}

	path, err := s.Kubeconfig(apiserver.Daemon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clientcmd.LoadFromFile(path); err != nil {
		t.Error(err)
	}
	nobody, err := s.Client(apiserver.Daemon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nobody.CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("with RBAC and no role, the daemon may list Services")
	}
}
