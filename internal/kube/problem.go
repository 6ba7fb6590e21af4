package kube

import "fmt"

// Problem says that a field of an object was set aside, and why.
type Problem struct {
	// Object is the kind and name of the object, such as "Service ns/name".
	Object string
	// Field is the path of the field within the object; empty where the whole object is meant.
	Field string
	// Message is for people; it quotes the start of the value.
	Message string
}

func (p Problem) String() string {
	if p.Field == "" {
		return p.Object + ": " + p.Message
	}
	return p.Object + ": " + p.Field + ": " + p.Message
}

// maxProblems bounds what one object can add to the log; what goes beyond is counted.
const maxProblems = 20

// problems collects the Problems of one object.
type problems struct {
	object string
	list   []Problem
	more   int
}

func (p *problems) add(field, message string) {
	if len(p.list) == maxProblems {
		p.more++
		return
	}
	p.list = append(p.list, Problem{Object: p.object, Field: field, Message: message})
}

// item is add for one element of a list.
func (p *problems) item(list string, i int, rest, message string) {
	p.add(fmt.Sprintf("%s[%d]%s", list, i, rest), message)
}

func (p *problems) all() []Problem {
	if p.more > 0 {
		return append(p.list, Problem{Object: p.object, Message: fmt.Sprintf("%d more problems", p.more)})
	}
	return p.list
}

// clip quotes a value for a message, and only the start of one that is long.
func clip[S ~string](s S) string {
	const limit = 80
	if len(s) > limit {
		return fmt.Sprintf("%q…", string(s[:limit]))
	}
	return fmt.Sprintf("%q", string(s))
}
