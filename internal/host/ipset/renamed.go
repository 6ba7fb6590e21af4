package ipset

import "context"

// Renamed wraps s so that callers use the names rename(name) for the sets. rename is its own
// inverse, and changes only the prefix of names that List is called with.
func Renamed(s Sets, rename func(string) string) Sets { return renamed{s, rename} }

type renamed struct {
	sets   Sets
	rename func(string) string
}

func (r renamed) List(ctx context.Context, prefix string) ([]Content, error) {
	out, err := r.sets.List(ctx, r.rename(prefix))
	for i := range out {
		out[i].Name = r.rename(out[i].Name)
	}
	return out, err
}

func (r renamed) Create(ctx context.Context, s Set) error {
	s.Name = r.rename(s.Name)
	return r.sets.Create(ctx, s)
}

func (r renamed) Destroy(ctx context.Context, name string) error {
	return r.sets.Destroy(ctx, r.rename(name))
}

func (r renamed) Swap(ctx context.Context, a, b string) error {
	return r.sets.Swap(ctx, r.rename(a), r.rename(b))
}

func (r renamed) Apply(ctx context.Context, changes []Change) ([]Failure, error) {
	own := make([]Change, len(changes))
	for i, c := range changes {
		c.Set.Name = r.rename(c.Set.Name)
		own[i] = c
	}
	return r.sets.Apply(ctx, own)
}
