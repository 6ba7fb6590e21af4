package kube

import "fmt"

// Problem is an invalid field of an object that was ignored.
type Problem struct {
	// Object is the kind and name of the object, such as "Service ns/name".
	Object string
	// Field is the path of the field within the object; empty means the whole object.
	Field string
	// Message explains the problem and quotes the start of the value.
	Message string
}

func (p Problem) String() string {
	if p.Field == "" {
		return p.Object + ": " + p.Message
	}
	return p.Object + ": " + p.Field + ": " + p.Message
}

// maxProblems limits how many problems of one object are reported; the others are only counted.
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

// item is add for an element of a list; field is the path within the element.
func (p *problems) item(list string, i int, field, message string) {
	p.add(fmt.Sprintf("%s[%d]%s", list, i, field), message)
}

func (p *problems) all() []Problem {
	if p.more > 0 {
		return append(p.list, Problem{Object: p.object, Message: fmt.Sprintf("%d more problems", p.more)})
	}
	return p.list
}

// clip quotes a value for a message; a long value is cut.
func clip[S ~string](s S) string {
	const limit = 80
	if len(s) > limit {
		return fmt.Sprintf("%q…", string(s[:limit]))
	}
	return fmt.Sprintf("%q", string(s))
}
