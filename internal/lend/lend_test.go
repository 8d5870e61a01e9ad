package lend

import (
	"bytes"
	"testing"
)

func TestClassesHoldWhatIsAsked(t *testing.T) {
	last := -1
	for n := Min; n <= Max; n += 1021 {
		i, size := class(n)
		if size < n || size > n+n/steps || i < last || i >= len(pools) {
			t.Fatalf("%d bytes: class %d of %d bytes", n, i, size)
		}
		if j, again := class(size); j != i || again != size {
			t.Fatalf("what class %d gives goes back to class %d", i, j)
		}
		last = i
	}
	if i, size := class(Max); i != len(pools)-1 || size != Max {
		t.Errorf("Max is class %d of %d bytes", i, size)
	}
}

func TestWhatIsGivenBackIsLentAgain(t *testing.T) {
	for _, n := range []int{0, 1, Min - 1, Min, Min + 1, 1200 << 10, Max, Max + 1} {
		b := Get(n)
		if len(b) != n {
			t.Fatalf("%d bytes for %d", len(b), n)
		}
		for i := range b {
			b[i] = byte(i)
		}
		if c := Copy(b); !bytes.Equal(b, c) || n > 0 && &b[0] == &c[0] {
			t.Errorf("the copy of %d bytes is not one", n)
		}
		Put(b)
	}
	Put(nil)
	if n := testing.AllocsPerRun(100, func() { Put(Get(1 << 20)) }); n > 1 {
		t.Errorf("%v allocations for a buffer that is lent again", n)
	}
}

// What begins later than what was lent is not lent again: it is shorter than it seems.
func TestForeignBuffersAreLeftAlone(t *testing.T) {
	Poison = true
	defer func() { Poison = false }()
	b := Get(Min)
	for _, foreign := range [][]byte{b[24:], make([]byte, 100<<10), make([]byte, 10, 1000)} {
		Put(foreign)
		if bytes.Contains(foreign, []byte{0xdb}) {
			t.Errorf("%d bytes were taken that nobody lent", cap(foreign))
		}
	}
	Put(b)
	if !bytes.Equal(b, bytes.Repeat([]byte{0xdb}, Min)) {
		t.Error("what was given back is still there")
	}
}
