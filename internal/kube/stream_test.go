package kube

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

// protobufList returns a list of EndpointSlices in the encoding of the API server.
func protobufList(t *testing.T, n int) (discoveryv1.EndpointSliceList, []byte) {
	t.Helper()
	list := discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"}, ListMeta: metav1.ListMeta{ResourceVersion: "77"}}
	for i := range n {
		s := discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("s", i)}, AddressType: discoveryv1.AddressTypeIPv4}
		for e := range i * 40 { // some are larger than the buffers
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.%d.%d", i, e)}})
		}
		list.Items = append(list.Items, s)
	}
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(&list, &b); err != nil {
		t.Fatal(err)
	}
	return list, b.Bytes()
}

func decodeSlices(r io.Reader) (out discoveryv1.EndpointSliceList, err error) {
	err = decodeList(bufio.NewReader(r), &out.ListMeta, func(b []byte) error {
		var s discoveryv1.EndpointSlice
		err := s.Unmarshal(b)
		clear(b) // decoded objects must not refer to it
		out.Items = append(out.Items, s)
		return err
	})
	return out, err
}

func TestDecodeList(t *testing.T) {
	for _, n := range []int{0, 1, 60} {
		want, text := protobufList(t, n)
		want.TypeMeta = metav1.TypeMeta{}
		for name, r := range map[string]io.Reader{"at once": bytes.NewReader(text), "in pieces": iotest.HalfReader(bytes.NewReader(text))} {
			got, err := decodeSlices(r)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%d objects %s: %v\n%s", n, name, err, diff)
			}
		}
	}
}

// TestDecodeListTruncated proves that a truncated response is never accepted as a shorter list.
func TestDecodeListTruncated(t *testing.T) {
	_, text := protobufList(t, 3)
	// The response ends with two empty fields of two bytes each.
	for n := range len(text) - 4 {
		got, err := decodeSlices(bytes.NewReader(text[:n]))
		if err == nil {
			t.Fatalf("the first %d of %d bytes are accepted as a list of %d", n, len(text), len(got.Items))
		}
	}
}

func TestDecodeListErrors(t *testing.T) {
	head := string(protobufMagic)
	for name, text := range map[string]string{
		"another wire type":      head + "\x10\x01",
		"another encoding":       head + "\x1a\x04gzip",
		"an object that is huge": head + "\x12\x80\x80\x80\x80\x10\x12\xff\xff\xff\xff\x0f",
	} {
		if _, err := decodeSlices(strings.NewReader(text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
