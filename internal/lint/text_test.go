package lint

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/token"
	"slices"
	"strings"
	"testing"
)

const (
	linesMax         = 600
	testLinesMax     = 1000
	functionLinesMax = 70
)

func TestFilesHoldOneIdea(t *testing.T) {
	for _, f := range files {
		limit := linesMax
		if f.test {
			limit = testLinesMax
		}
		if f.lines > limit {
			t.Errorf("%s has %d lines; the limit is %d: split it by idea", f.path, f.lines, limit)
		}
	}
}

// longFunctions may be longer than functionLinesMax, for a reason.
var longFunctions = map[string]string{}

func TestFunctionsFitOnAScreen(t *testing.T) {
	for _, f := range files {
		if f.test {
			continue // tables of cases are long and easy to read
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			n := fset.Position(fn.Body.Rbrace).Line - fset.Position(fn.Pos()).Line + 1
			if n > functionLinesMax && longFunctions[f.dir+"."+fn.Name.Name] == "" {
				t.Errorf("%s: %s has %d lines; the limit is %d", at(fn), fn.Name.Name, n, functionLinesMax)
			}
		}
	}
}

func TestGofmt(t *testing.T) {
	for _, f := range files {
		want, err := format.Source(f.src)
		if err != nil {
			t.Errorf("%s: %v", f.path, err)
		} else if !bytes.Equal(f.src, want) {
			t.Errorf("%s is not formatted; run gofmt -w", f.path)
		}
	}
}

func TestNoUnfinishedWork(t *testing.T) {
	marks := []string{"TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"}
	for _, f := range files {
		for _, g := range f.ast.Comments {
			for _, m := range marks {
				if strings.Contains(g.Text(), m) {
					t.Errorf("%s: a comment says %s; do it or write it where work is planned", at(g), m)
				}
			}
		}
	}
}

func TestBannedCalls(t *testing.T) {
	for _, f := range files {
		command := strings.HasPrefix(f.dir, "cmd/") || f.ast.Name.Name == "main" || isFree(f.dir)
		virtual := slices.Contains(f.imports(), "testing/synctest") // its time costs nothing
		polls := inLoops(f)
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch {
			case f.test && isCall(n, "time", "Sleep") && !polls[n] && !virtual:
				t.Errorf("%s: a test sleeps; wait for an event, or poll a condition with a deadline", at(n))
			case !f.test && !command && isCall(n, "fmt", "Print", "Println", "Printf"):
				t.Errorf("%s: a package prints; return it, or log it to the Logger of the Config", at(n))
			case !f.test && !command && isCall(n, "log", "Print", "Println", "Printf", "Fatal", "Fatalf", "Panic", "Panicf"):
				t.Errorf("%s: a package uses the global log", at(n))
			case !f.test && matchesErrorText(n):
				t.Errorf("%s: matches the text of an error; ask fault.KindOf or errors.Is", at(n))
			case f.test && skipsSilently(n):
				t.Errorf("%s: skips without saying why", at(n))
			case !f.test && isCall(n, "slog", "Default"):
				t.Errorf("%s: uses the global logger", at(n))
			}
			return true
		})
	}
}

// inLoops finds the nodes inside of loops: a sleep there is the pause of a poll.
func inLoops(f *file) map[ast.Node]bool {
	in := map[ast.Node]bool{}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if loop, ok := n.(*ast.ForStmt); ok {
			ast.Inspect(loop, func(n ast.Node) bool { in[n] = true; return true })
		}
		return true
	})
	return in
}

// matchesErrorText finds strings.F(err.Error(), ...) and comparisons of
// err.Error() with anything.
func matchesErrorText(n ast.Node) bool {
	isText := func(e ast.Expr) bool {
		call, ok := e.(*ast.CallExpr)
		if !ok || len(call.Args) != 0 {
			return false
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		return ok && sel.Sel.Name == "Error"
	}
	switch n := n.(type) {
	case *ast.BinaryExpr:
		return (n.Op == token.EQL || n.Op == token.NEQ) && (isText(n.X) != isText(n.Y))
	case *ast.CallExpr:
		if !isCall(n, "strings", "Contains", "HasPrefix", "HasSuffix", "Index", "EqualFold", "Cut") {
			return false
		}
		for _, a := range n.Args {
			if isText(a) {
				return true
			}
		}
	}
	return false
}

func skipsSilently(n ast.Node) bool {
	return isCall(n, "t", "SkipNow") || isCall(n, "b", "SkipNow") ||
		isCall(n, "t", "Skip") && len(n.(*ast.CallExpr).Args) == 0
}

// TestExportedThingsAreDocumented: contracts are written where they are
// declared. Methods of interfaces of the standard library speak for themselves.
func TestExportedThingsAreDocumented(t *testing.T) {
	for _, f := range files {
		if f.test || isFree(f.dir) || f.ast.Name.Name == "main" {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.IsExported() && d.Doc == nil && !grouped(f, d) {
					t.Errorf("%s: %s has no comment", at(d), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					ts, ok := s.(*ast.TypeSpec)
					if ok && ts.Name.IsExported() && !ts.Assign.IsValid() && d.Doc == nil && ts.Doc == nil && ts.Comment == nil {
						t.Errorf("%s: type %s has no comment", at(ts), ts.Name.Name)
					}
				}
			}
		}
	}
}

// grouped reports whether d stands in a table of one-line functions, whose names
// say all.
func grouped(f *file, d *ast.FuncDecl) bool {
	line := fset.Position(d.Pos()).Line
	for _, o := range f.ast.Decls {
		above, below := fset.Position(o.End()).Line, fset.Position(o.Pos()).Line
		if o != d && (above == line-1 || below == line+1) {
			return true
		}
	}
	return false
}
