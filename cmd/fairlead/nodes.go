package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// named has the fields of an object that are needed to find Nodes.
type named struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Items []named `json:"items"`
}

// onlyNode returns the name of the only Node in the files, empty if there is none. The error lists
// the Nodes if there are several.
func onlyNode(path string) (string, error) {
	if path == "-" {
		return "", errors.New("--node \"\": want the node's name when objects come from standard input")
	}
	files := []string{path}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "*")); err != nil {
			return "", fmt.Errorf("list %s: %w", path, err)
		}
		files = slices.DeleteFunc(files, func(f string) bool {
			return !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(f)) || strings.HasPrefix(filepath.Base(f), ".")
		})
	}
	var names []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read objects: %w", err)
		}
		names = append(names, nodeNames(string(data))...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch len(names) {
	case 0:
		return "", nil
	case 1:
		return names[0], nil
	}
	return "", fmt.Errorf("--node \"\": want one of the nodes %s", strings.Join(names, ", "))
}

// nodeNames finds the Nodes in YAML documents. It skips malformed ones; whoever reads the objects
// reports them.
func nodeNames(data string) []string {
	var names []string
	for doc := range strings.SplitSeq("\n"+data, "\n---") {
		var o named
		if yaml.Unmarshal([]byte(doc), &o) != nil {
			continue
		}
		for _, item := range append(o.Items, o) {
			if item.Kind == "Node" || item.Kind == "" && o.Kind == "NodeList" {
				names = append(names, item.Metadata.Name)
			}
		}
	}
	return names
}
