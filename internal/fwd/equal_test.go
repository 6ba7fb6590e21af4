package fwd

import (
	"testing"

	"github.com/fairlead/fairlead/internal/fieldtest"
)

func TestEqualComparesAllFields(t *testing.T) {
	fieldtest.Equal(t, func(a, b *Frontend) bool { return a.Equal(*b) })
	fieldtest.Equal(t, func(a, b *Pool) bool { return a.Equal(*b) })
	fieldtest.Equal(t, func(a, b *ServingPort) bool { return a.Equal(*b) })
	fieldtest.Equal(t, (*Fragment).Equal)
	fieldtest.Equal(t, func(a, b *NodePortAddrs) bool { return a.Equal(*b) })
	fieldtest.Equal(t, (*Header).Equal)
}
