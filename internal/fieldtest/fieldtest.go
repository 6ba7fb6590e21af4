package fieldtest

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
)

// Equal fails the test unless equal holds for two values filled alike, and notices a change of any
// leaf of one of them: of each field, of each element, of what a pointer points to, and of the
// length of each slice. Leaves whose path is in ignored must not be noticed. A path is like
// ".Ports[0].Name"; that of a slice's length ends with "[]".
func Equal[T any](t testing.TB, equal func(a, b *T) bool, ignored ...string) {
	t.Helper()
	filled := func() *T {
		v := new(T)
		fill(reflect.ValueOf(v).Elem())
		return v
	}
	if !equal(filled(), filled()) {
		t.Errorf("%T: Equal does not hold for the same value", *new(T))
	}
	var paths []string
	walk(reflect.ValueOf(filled()).Elem(), "", func(path string, _ func()) { paths = append(paths, path) })
	for i, path := range paths {
		changed := filled()
		n := 0
		walk(reflect.ValueOf(changed).Elem(), "", func(_ string, change func()) {
			if n == i {
				change()
			}
			n++
		})
		if same := equal(filled(), changed); same != slices.Contains(ignored, path) {
			t.Errorf("%T: a change of %s: Equal says %v", *new(T), path, same)
		}
	}
	for _, path := range ignored {
		if !slices.Contains(paths, path) {
			t.Errorf("%T has no %s", *new(T), path)
		}
	}
}

// samples are two different values of each type that is a leaf without being of a basic kind.
var samples = map[reflect.Type][2]reflect.Value{
	reflect.TypeFor[netip.Addr]():     pair(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")),
	reflect.TypeFor[netip.AddrPort](): pair(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.1:2")),
	reflect.TypeFor[netip.Prefix]():   pair(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/9")),
}

func pair(a, b any) [2]reflect.Value { return [2]reflect.Value{reflect.ValueOf(a), reflect.ValueOf(b)} }

// fill sets every leaf to something that is not zero; slices get one element.
func fill(v reflect.Value) {
	if s, ok := samples[v.Type()]; ok {
		v.Set(s[0])
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i))
		}
	default:
		set(v, 1)
	}
}

// walk calls visit for every leaf, with what changes it.
func walk(v reflect.Value, path string, visit func(path string, change func())) {
	if s, ok := samples[v.Type()]; ok {
		visit(path, func() { v.Set(s[1]) })
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			walk(v.Field(i), path+"."+v.Type().Field(i).Name, visit)
		}
	case reflect.Pointer:
		walk(v.Elem(), path, visit)
	case reflect.Slice:
		visit(path+"[]", func() { v.SetZero() })
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i), visit)
		}
	default:
		visit(path, func() { set(v, 0) })
	}
}

// set gives a value of a basic kind one of two values.
func set(v reflect.Value, n int) {
	switch {
	case v.Kind() == reflect.Bool:
		v.SetBool(n == 1)
	case v.Kind() == reflect.String:
		v.SetString(fmt.Sprint("text", n))
	case v.CanInt():
		v.SetInt(int64(n))
	case v.CanUint():
		v.SetUint(uint64(n))
	default:
		panic(fmt.Sprintf("fieldtest: a leaf of type %s is not known here", v.Type()))
	}
}
