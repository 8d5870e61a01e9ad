package lint

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// messageRanges gives each package its numbers, as internal/link says.
var messageRanges = map[string][2]int64{
	"internal/link": {0x01, 0x0f}, "internal/pki": {0x01, 0x0f},
	"overlay": {0x10, 0x1f}, "overlay/kouncil": {0x10, 0x1f},
	"quorum": {0x20, 0x3f}, "dht": {0x40, 0x4f},
	"pool": {0x50, 0x5f}, "blockdev": {0x50, 0x5f}, "internal/node": {0x50, 0x5f},
}

// message is one constant of type link.Type.
type message struct {
	file  *file
	name  string
	value int64
}

// messages finds the constants of type link.Type, spelt with a literal or
// following one through iota.
func messages() []message {
	var out []message
	for _, f := range files {
		if f.test || isFree(f.dir) {
			continue
		}
		for _, d := range f.ast.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok || gen.Tok != token.CONST {
				continue
			}
			var typ, value ast.Expr
			for i, s := range gen.Specs {
				vs := s.(*ast.ValueSpec)
				if vs.Type != nil || len(vs.Values) > 0 {
					typ, value = vs.Type, nil
				}
				if len(vs.Values) == 1 {
					value = vs.Values[0]
					if call, ok := value.(*ast.CallExpr); ok && len(call.Args) == 1 { // link.Type(0x10)
						typ, value = call.Fun, call.Args[0]
					}
				}
				if typ == nil || value == nil || !isMessageType(f, typ) {
					continue
				}
				if v, ok := evaluate(value, i); ok {
					out = append(out, message{f, vs.Names[0].Name, v})
				}
			}
		}
	}
	return out
}

func isMessageType(f *file, e ast.Expr) bool {
	switch types.ExprString(e) {
	case "link.Type":
		return true
	case "Type":
		return f.dir == "internal/link"
	}
	return false
}

// evaluate computes a constant expression of literals and iota.
func evaluate(e ast.Expr, iota int) (int64, bool) {
	text := regexp.MustCompile(`\biota\b`).ReplaceAllString(types.ExprString(e), fmt.Sprint(iota))
	tv, err := types.Eval(token.NewFileSet(), nil, token.NoPos, text)
	if err != nil || tv.Value == nil {
		return 0, false
	}
	return constant.Int64Val(constant.ToInt(tv.Value))
}

func TestMessageTypesAreUniqueInRangeAndDocumented(t *testing.T) {
	doc := readDoc(t, "PROTOCOL.md")
	taken := map[int64]string{}
	found := messages()
	if len(found) == 0 {
		t.Fatal("no message type was found: the search is wrong")
	}
	for _, m := range found {
		key := m.file.dir + "." + m.name
		if other := taken[m.value]; other != "" {
			t.Errorf("0x%02x is both %s and %s", m.value, key, other)
		}
		taken[m.value] = key
		r, ok := messageRanges[m.file.dir]
		if !ok || m.value < r[0] || m.value > r[1] {
			t.Errorf("%s = 0x%02x is outside of the range of its package", key, m.value)
		}
		if !strings.Contains(doc, fmt.Sprintf("0x%02x", m.value)) || !strings.Contains(doc, m.name) {
			t.Errorf("docs/PROTOCOL.md does not mention %s = 0x%02x", key, m.value)
		}
	}
}

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// documented finds `pkg.Name` in the prose: what a document calls code must
// exist. Receivers are left out of the check of methods.
var documented = regexp.MustCompile("`([a-z][a-z0-9/]*)\\.(?:\\(\\*?[A-Za-z]+\\)\\.)?([A-Za-z][A-Za-z0-9]*)`")

// TestDocsNameCodeThatExists keeps the route of a write and the tables of
// limits true when code is renamed.
func TestDocsNameCodeThatExists(t *testing.T) {
	names := map[string]map[string]bool{} // folder -> declared identifiers
	for _, f := range files {
		if names[f.dir] == nil {
			names[f.dir] = map[string]bool{}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names[f.dir][n.Name.Name] = true
			case *ast.TypeSpec:
				names[f.dir][n.Name.Name] = true
			case *ast.ValueSpec:
				for _, id := range n.Names {
					names[f.dir][id.Name] = true
				}
			case *ast.Field:
				for _, id := range n.Names {
					names[f.dir][id.Name] = true
				}
			}
			return true
		})
	}
	for _, doc := range []string{"ARCHITECTURE.md", "PROTOCOL.md", "OPERATIONS.md", "../README.md"} {
		for _, m := range documented.FindAllStringSubmatch(readDoc(t, doc), -1) {
			if m[2] == strings.ToLower(m[2]) && !strings.Contains(m[0], "(") {
				continue // a file name: node.json
			}
			known := false
			for dir, ids := range names {
				if dir == m[1] || strings.HasSuffix(dir, "/"+m[1]) {
					known = known || ids[m[2]]
					if known {
						break
					}
				}
			}
			if !known && isPackage(m[1], names) {
				t.Errorf("docs/%s names %s.%s, which does not exist", doc, m[1], m[2])
			}
		}
	}
}

func isPackage(name string, names map[string]map[string]bool) bool {
	for dir := range names {
		if dir == name || strings.HasSuffix(dir, "/"+name) {
			return true
		}
	}
	return false
}

// link matches a relative link of a document.
var docLink = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

func TestDocLinksLeadSomewhere(t *testing.T) {
	for _, doc := range []string{"docs/ARCHITECTURE.md", "docs/PROTOCOL.md", "docs/OPERATIONS.md", "README.md"} {
		b, err := os.ReadFile(filepath.Join(root, doc))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range docLink.FindAllStringSubmatch(string(b), -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", doc, m[1])
			}
		}
	}
}
