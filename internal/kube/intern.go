package kube

// maxInterned bounds what an interner holds on to. One cluster has fewer node names, zones, namespaces and port names.
const maxInterned = 1 << 16

// interner keeps one copy of strings that repeat across objects: a node name is in every EndpointSlice with an endpoint
// on the node. A nil interner keeps nothing. It belongs to one goroutine.
//
// The standard package unique is not used here since it forgets a string as soon as nobody holds its Handle, and the
// values of package cluster hold plain strings.
type interner struct {
	strings map[string]string
	// lists holds the hints of one name, by far the most frequent ones.
	lists map[string][]string
}

func newInterner() *interner {
	return &interner{strings: make(map[string]string), lists: make(map[string][]string)}
}

func (in *interner) str(s string) string {
	if in == nil || s == "" {
		return s
	}
	if known, ok := in.strings[s]; ok {
		return known
	}
	if len(in.strings) >= maxInterned {
		clear(in.strings)
		clear(in.lists)
	}
	in.strings[s] = s
	return s
}

// list shares a list of one name; the caller must not change it.
func (in *interner) list(names []string) []string {
	if in == nil || len(names) != 1 {
		return names
	}
	if known, ok := in.lists[names[0]]; ok {
		return known
	}
	in.lists[names[0]] = names[:1:1]
	return names[:1:1]
}
