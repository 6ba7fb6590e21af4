package main

import (
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// kustomization builds a directory with components, as "kubectl kustomize" does with no flags.
func kustomization(dir string, components []string) ([]byte, error) {
	root := dir
	if len(components) > 0 {
		overlay, err := overlay(dir, components)
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(overlay)
		root = overlay
	}
	objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), root)
	if err != nil {
		return nil, fmt.Errorf("kustomize %s with %q: %w", dir, components, err)
	}
	return objects.AsYaml()
}

// overlay makes a directory that adds components to a directory, like an overlay of a user.
func overlay(dir string, components []string) (string, error) {
	root, err := os.MkdirTemp("", "manifests-")
	if err != nil {
		return "", err
	}
	// kustomize needs paths relative to the directory without symbolic links.
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return "", err
	}
	var k types.Kustomization
	if k.Resources, err = relative(root, dir); err != nil {
		return "", err
	}
	if k.Components, err = relative(root, components...); err != nil {
		return "", err
	}
	text, err := yaml.Marshal(k)
	if err != nil {
		return "", err
	}
	return root, os.WriteFile(filepath.Join(root, "kustomization.yaml"), text, 0o600)
}

func relative(root string, paths ...string) ([]string, error) {
	out := make([]string, 0, len(paths))
	for _, p := range paths {
		p, err := filepath.Abs(p)
		if err != nil {
			return nil, err
		}
		if p, err = filepath.Rel(root, p); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
