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

// API servers that do not stream lists as a watch (Kubernetes before 1.34 except 1.32, or etcd
// before 3.4.31 or 3.5.13) send one list. client-go decodes it as a whole; streamList decodes it
// object by object, so that the memory for what is not kept is never needed all at once. Like a
// Reflector it requests resource version 0: the server answers from its cache, without pages. Pages
// would be read from etcd, by the agents of all nodes at the same time when a server restarts.

// reducedList is a list of reduced API objects.
type reducedList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []*reduced
}

// DeepCopyObject implements runtime.Object. Reduced objects are immutable.
func (l *reducedList) DeepCopyObject() runtime.Object {
	out := *l
	return &out
}

// GetObjectKind implements runtime.Object.
func (r *reduced) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (r *reduced) DeepCopyObject() runtime.Object { return r }

// unmarshaler is an API object that can be decoded from protobuf.
type unmarshaler interface {
	runtime.Object
	Unmarshal([]byte) error
}

// streamList returns a list function that reduces each object when it is decoded; newObject returns
// an object to decode into.
func streamList(client rest.Interface, store *keyStore, newObject func() unmarshaler) func(context.Context, metav1.ListOptions) (runtime.Object, error) {
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		body, err := client.Get().Resource(store.kind.String()).VersionedParams(&o, scheme.ParameterCodec).Stream(ctx)
		if err != nil {
			return nil, err
		}
		defer body.Close()
		r := bufio.NewReader(body)
		if head, err := r.Peek(len(protobufMagic)); err != nil || !bytes.Equal(head, protobufMagic) {
			text, err := io.ReadAll(r) // JSON
			if err != nil {
				return nil, err
			}
			return runtime.Decode(scheme.Codecs.UniversalDeserializer(), text)
		}
		out := &reducedList{}
		err = decodeList(r, &out.ListMeta, func(b []byte) error {
			obj := newObject()
			if err := obj.Unmarshal(b); err != nil {
				return err
			}
			small, err := store.reduce(obj)
			out.Items = append(out.Items, small)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read the list of %s: %w", store.kind, err)
		}
		return out, nil
	}
}

// protobufMagic is the start of protobuf responses of the API server
// (k8s.io/apimachinery/pkg/runtime/serializer/protobuf).
var protobufMagic = []byte("k8s\x00")

// Field numbers of runtime.Unknown, which wraps every response, and of a list.
const (
	fieldRaw, fieldEncoding, fieldContentType = 2, 3, 4

	fieldListMeta, fieldItems = 1, 2
)

// maxField limits what is read into memory at once; etcd accepts objects of a few MiB.
const maxField = 64 << 20

// decodeList reads a list response: its metadata, and each object, whose bytes are only valid
// during the call of item.
func decodeList(r *bufio.Reader, meta *metav1.ListMeta, item func([]byte) error) error {
	if _, err := r.Discard(len(protobufMagic)); err != nil {
		return err
	}
	hasList := false
	for {
		number, n, err := field(r)
		if errors.Is(err, io.EOF) && hasList {
			return nil
		}
		if err != nil {
			return unexpectedEOF(err)
		}
		switch {
		case number == fieldRaw:
			hasList = true
			err = decodeItems(r, n, meta, item)
		case (number == fieldEncoding || number == fieldContentType) && n > 0:
			err = errors.New("the response has an unknown encoding")
		default:
			err = skip(r, n)
		}
		if err != nil {
			return err
		}
	}
}

// decodeItems reads a list of size bytes.
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
			return unexpectedEOF(err)
		}
		if uint64(cap(buf)) < n {
			buf = make([]byte, n+n/4)
		}
		buf = buf[:n]
		if _, err := io.ReadFull(list, buf); err != nil {
			return unexpectedEOF(err)
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

// field reads the header of a field: its number and the length of its value. The error is io.EOF
// only if there is no further field.
func field(r *bufio.Reader) (number, length uint64, err error) {
	const lengthDelimited = 2 // the wire type of all fields that are expected
	tag, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, 0, err
	}
	if tag&7 != lengthDelimited {
		return 0, 0, fmt.Errorf("field %d has wire type %d, want %d", tag>>3, tag&7, lengthDelimited)
	}
	length, err = binary.ReadUvarint(r)
	return tag >> 3, length, unexpectedEOF(err)
}

func skip(r *bufio.Reader, n uint64) error {
	_, err := io.CopyN(io.Discard, r, int64(n))
	return unexpectedEOF(err)
}

// unexpectedEOF replaces io.EOF by io.ErrUnexpectedEOF.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
