package cluster

import (
	"testing"

	"github.com/fairlead/fairlead/internal/fieldtest"
)

func TestEqualComparesAllFields(t *testing.T) {
	fieldtest.Equal(t, (*Service).Equal)
	fieldtest.Equal(t, func(a, b *Endpoint) bool { return a.Equal(*b) })
	fieldtest.Equal(t, (*Slice).Equal, ".TriggerUnixNano")
	fieldtest.Equal(t, (*Node).Equal)
}
