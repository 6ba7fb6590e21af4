package kube

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// Where the API server does not stream its objects as a watch (Kubernetes before 1.34, but for 1.32; etcd before 3.4.31, or 3.5
// before 3.5.13), they come as one list. It is read here object by object, so that what is not kept of it never is in memory all
// at once. It is asked for with resource version 0, as a Reflector does: all of it comes from the server's cache, which knows no
// pages for that; pages would be read from etcd, by the agents of all nodes together when a server restarts.

// reducedList is a list of objects of the API that are reduced already.
type reducedList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []*reduced
}

// DeepCopyObject implements runtime.Object. What is reduced is not changed any more.
func (l *reducedList) DeepCopyObject() runtime.Object {
	out := *l
	return &out
}

// GetObjectKind implements runtime.Object.
func (r *reduced) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (r *reduced) DeepCopyObject() runtime.Object { return r }

// unmarshaler is a decoded object of the API.
type unmarshaler interface {
	runtime.Object
	Unmarshal([]byte) error
}

// streamList returns a function that lists objects and reduces each one by itself; fresh makes an object to decode into.
func streamList(client rest.Interface, resource string, store *keyStore, fresh func() unmarshaler) func(context.Context, metav1.ListOptions) (runtime.Object, error) {
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		body, err := client.Get().Resource(resource).VersionedParams(&o, scheme.ParameterCodec).Stream(ctx)
		if err != nil {
			return nil, err
		}
		defer body.Close()
		r := bufio.NewReader(body)
		if head, err := r.Peek(len(protobufMagic)); err != nil || !bytes.Equal(head, protobufMagic) {
			return decodeWhole(r) // JSON
		}
		out := &reducedList{}
		err = decodeList(r, &out.ListMeta, func(b []byte) error {
			obj := fresh()
			if err := obj.Unmarshal(b); err != nil {
				return err
			}
			small, err := store.reduce(obj)
			out.Items = append(out.Items, small)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read the list of %s: %w", resource, err)
		}
		return out, nil
	}
}

func decodeWhole(r io.Reader) (runtime.Object, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return runtime.Decode(scheme.Codecs.UniversalDeserializer(), text)
}

// protobufMagic is what the API server begins an answer in protobuf with (k8s.io/apimachinery/pkg/runtime/serializer/protobuf).
var protobufMagic = []byte("k8s\x00")

// The numbers of fields: of runtime.Unknown, which every answer is, and of a list.
const (
	fieldRaw, fieldEncoding, fieldContentType = 2, 3, 4

	fieldListMeta, fieldItems = 1, 2
)

// maxField bounds what is read into memory at once; etcd takes objects of a few MiB.
const maxField = 64 << 20

// decodeList reads an answer that is a list: its metadata, and each object, of which the bytes are valid during the call.
func decodeList(r *bufio.Reader, meta *metav1.ListMeta, item func([]byte) error) error {
	if _, err := r.Discard(len(protobufMagic)); err != nil {
		return err
	}
	listed := false
	for {
		number, n, err := field(r)
		if errors.Is(err, io.EOF) && listed {
			return nil
		}
		if err != nil {
			return whole(err)
		}
		switch {
		case number == fieldRaw:
			listed = true
			err = decodeItems(r, n, meta, item)
		case (number == fieldEncoding || number == fieldContentType) && n > 0:
			err = errors.New("the answer is encoded in a way that is not known")
		default:
			err = skip(r, n)
		}
		if err != nil {
			return err
		}
	}
}

// decodeItems reads a list of so many bytes.
func decodeItems(r *bufio.Reader, size uint64, meta *metav1.ListMeta, item func([]byte) error) error {
	limited := &io.LimitedReader{R: r, N: int64(size)}
	list := bufio.NewReaderSize(limited, 64<<10)
	var buf []byte
	for {
		number, n, err := field(list)
		if errors.Is(err, io.EOF) && limited.N == 0 {
			return nil
		}
		if err == nil && number != fieldListMeta && number != fieldItems {
			if err = skip(list, n); err == nil {
				continue
			}
		}
		if err == nil && n > maxField {
			err = fmt.Errorf("an object of %d bytes, want at most %d", n, maxField)
		}
		if err != nil {
			return whole(err)
		}
		if uint64(cap(buf)) < n {
			buf = make([]byte, n+n/4)
		}
		buf = buf[:n]
		if _, err := io.ReadFull(list, buf); err != nil {
			return whole(err)
		}
		if number == fieldListMeta {
			err = meta.Unmarshal(buf)
		} else {
			err = item(buf)
		}
		if err != nil {
			return err
		}
	}
}

// field reads the head of a field: its number, and the length of what follows. io.EOF is an end in front of it.
func field(r *bufio.Reader) (number, length uint64, err error) {
	const bytesOfLength = 2 // the wire type of everything that an answer is made of
	tag, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, 0, err
	}
	if tag&7 != bytesOfLength {
		return 0, 0, fmt.Errorf("field %d has wire type %d, want %d", tag>>3, tag&7, bytesOfLength)
	}
	length, err = binary.ReadUvarint(r)
	return tag >> 3, length, whole(err)
}

func skip(r *bufio.Reader, n uint64) error {
	_, err := io.CopyN(io.Discard, r, int64(n))
	return whole(err)
}

// whole makes an error of an end that comes too early.
func whole(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
