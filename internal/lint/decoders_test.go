package lint

import (
	"go/ast"
	"regexp"
	"strings"
	"testing"
)

// decoder matches the names of functions that read bytes or text that somebody
// else wrote.
var decoder = regexp.MustCompile(`^(Decode|Parse|Unmarshal)`)

// fuzzedElsewhere are exported decoders whose fuzz target does not name them.
var fuzzedElsewhere = map[string]string{
	"internal/ident.UnmarshalText": "a length check and encoding/hex",
}

// TestEveryDecoderIsFuzzed demands that a test file of the package with a Fuzz
// function names each exported decoder of the package.
func TestEveryDecoderIsFuzzed(t *testing.T) {
	fuzzed := map[string]map[string]bool{} // folder -> identifiers in files with a fuzz target
	for _, f := range files {
		if !f.test || !hasFuzz(f) {
			continue
		}
		if fuzzed[f.dir] == nil {
			fuzzed[f.dir] = map[string]bool{}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				fuzzed[f.dir][id.Name] = true
			}
			return true
		})
	}
	for _, f := range files {
		if f.test || isFree(f.dir) {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !fn.Name.IsExported() || !decoder.MatchString(fn.Name.Name) {
				continue
			}
			key := f.dir + "." + fn.Name.Name
			if !fuzzed[f.dir][fn.Name.Name] && fuzzedElsewhere[key] == "" {
				t.Errorf("%s: %s has no fuzz target", at(fn), key)
			}
		}
	}
}

func hasFuzz(f *file) bool {
	for _, d := range f.ast.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Fuzz") {
			return true
		}
	}
	return false
}
