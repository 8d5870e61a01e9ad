package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/gabion-storage/gabion"

// file is one Go file of the module.
type file struct {
	path  string // relative to the root, slash separated
	dir   string // its package's folder, relative to the root
	test  bool
	src   []byte
	ast   *ast.File
	lines int
}

var (
	fset  = token.NewFileSet()
	files []*file // sorted by path
)

const root = "../.."

func TestMain(m *testing.M) {
	if err := load(); err != nil {
		println("lint: " + err.Error())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// load parses every Go file of the module, generated and test files included.
func load() error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		hidden := strings.HasPrefix(name, ".") && path != root
		if d.IsDir() && (hidden || name == "testdata" || name == "demo" || name == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || hidden || !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		tree, err := parser.ParseFile(fset, rel, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, &file{
			path: rel, dir: filepath.ToSlash(filepath.Dir(rel)), test: strings.HasSuffix(name, "_test.go"),
			src: src, ast: tree, lines: strings.Count(string(src), "\n"),
		})
		return nil
	})
}

// imports lists the import paths of f.
func (f *file) imports() []string {
	var out []string
	for _, i := range f.ast.Imports {
		out = append(out, strings.Trim(i.Path.Value, `"`))
	}
	return out
}

// at is the position of a node, for messages.
func at(n ast.Node) string { return fset.Position(n.Pos()).String() }

// isCall reports whether n calls pkg.name, for any of names.
func isCall(n ast.Node, pkg string, names ...string) bool {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg && slices.Contains(names, sel.Sel.Name)
}
