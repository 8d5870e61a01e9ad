package dht

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
)

var (
	mBrick = ident.BrickID{0: 0xb1, 15: 0xb2}
	mVol   = ident.VolumeID{0: 0xa1, 15: 0xa2}
	mAddr  = ident.Addr{0: 0xd1, 31: 0xd2}
)

func samplePut() putRequest {
	return putRequest{brick: mBrick, volume: mVol, epoch: 0x0102, extents: []brick.Extent{
		{Addr: mAddr, Volume: mVol, Number: 3, Epoch: 4, Data: []byte("one"), Summed: true, Sum: 0x11223344},
		{Addr: ident.Addr{1}, Volume: mVol, Number: 5, Epoch: 6, Data: []byte("seven"), Relief: true},
	}}
}

func encodePut(r putRequest) []byte {
	b := r.head()
	for _, x := range r.extents {
		b = append(b, x.Data...)
	}
	return b
}

// The layouts never change.
func TestMessageGolden(t *testing.T) {
	const (
		b = "b10000000000000000000000000000b2"
		v = "a10000000000000000000000000000a2"
		a = "d1000000000000000000000000000000000000000000000000000000000000d2"
	)
	put := samplePut()
	relief := put
	relief.extents = put.extents[1:]
	put.extents = put.extents[:1]
	del := deleteRequest{mBrick, mVol, 7, []ident.Addr{mAddr}}
	stat := statRequest{mBrick, []ident.Addr{mAddr}}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"put":    {encodePut(put), b + v + "0201000000000000 01000000 00000000" + a + "0300000000000000 0400000000000000 03000000 02000000 44332211 6f6e65"},
		"relief": {encodePut(relief), b + v + "0201000000000000 01000000 00000000" + "01" + strings.Repeat("00", 31) + "0500000000000000 0600000000000000 05000000 01000000 00000000 736576656e"},
		"read":   {readRequest{mBrick, mAddr, 0x10, 0x20}.encode(), b + a + "1000000000000000 20000000 00000000"},
		"delete": {del.encode(), b + v + "0700000000000000 01000000 00000000" + a},
		"list":   {listRequest{mBrick, mVol, brick.Ref{Addr: mAddr, Number: 8, Epoch: 9}, 10}.encode(), b + v + "0800000000000000 0900000000000000" + a + "0a000000 00000000"},
		"page":   {listPage{[]brick.Ref{{Addr: mAddr, Number: 8, Epoch: 9, Size: 11}}, true}.encode(), "01000000 01000000" + a + "0800000000000000 0900000000000000 0b00000000000000"},
		"stat":   {stat.encode(), b + "01000000 00000000" + a},
		"sizes":  {encodeSizes([]int64{5, -1}), "0500000000000000 ffffffffffffffff"},
		"seal":   {sealRequest{mVol, 12}.encode(), v + "0c00000000000000"},
		"check":  {checkRequest{mBrick, mAddr}.encode(), b + a},
	} {
		if want := strings.ReplaceAll(c.want, " ", ""); hex.EncodeToString(c.got) != want {
			t.Errorf("%s:\n got %x\nwant %s", name, c.got, want)
		}
	}
}

func TestMessagesFitTheLink(t *testing.T) {
	for name, n := range map[string]int{
		"put":    putHead + PutCountMax*putEntry + PutMessageMax,
		"read":   ExtentMax,
		"delete": deleteHead + AddrsMax*32,
		"page":   listHead + ListPageMax*listEntry,
	} {
		if n > link.MessageMax {
			t.Errorf("%s may have %d bytes, a link carries %d", name, n, link.MessageMax)
		}
	}
}

func TestPutRoundTrip(t *testing.T) {
	want := samplePut()
	got, err := decodePut(encodePut(want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v: %v", got, err)
	}
}

func TestDecodersRefuse(t *testing.T) {
	change := func(b []byte, f func([]byte)) []byte { b = bytes.Clone(b); f(b); return b }
	put := encodePut(samplePut())
	read := readRequest{mBrick, mAddr, 1, 1}.encode()
	list := listRequest{mBrick, mVol, brick.Ref{}, 1}.encode()
	del := (&deleteRequest{mBrick, mVol, 7, []ident.Addr{mAddr}}).encode()
	ref := func(n uint64) brick.Ref { return brick.Ref{Addr: mAddr, Number: n, Size: 1} }
	for name, f := range map[string]func() error{
		"put count 0":        func() error { _, err := decodePut(change(put, func(b []byte) { b[40] = 0 })); return err },
		"put count large":    func() error { _, err := decodePut(change(put, func(b []byte) { b[42] = 1 })); return err },
		"put zero bytes":     func() error { _, err := decodePut(change(put, func(b []byte) { b[47] = 1 })); return err },
		"put extent empty":   func() error { _, err := decodePut(change(put, func(b []byte) { b[putHead+48] = 0 })); return err },
		"put extent large":   func() error { _, err := decodePut(change(put, func(b []byte) { b[putHead+51] = 1 })); return err },
		"put flags unknown":  func() error { _, err := decodePut(change(put, func(b []byte) { b[putHead+52] = 4 })); return err },
		"put beyond message": func() error { _, err := decodePut(change(put, func(b []byte) { b[putHead+48] = 9 })); return err },
		"put too long":       func() error { _, err := decodePut(append(bytes.Clone(put), 0)); return err },
		"put short":          func() error { _, err := decodePut(put[:putHead-1]); return err },
		"put cut":            func() error { _, err := decodePut(put[:len(put)-1]); return err },
		"read short":         func() error { _, err := decodeRead(read[:readSize-1]); return err },
		"read far":           func() error { _, err := decodeRead(change(read, func(b []byte) { b[55] = 0x80 })); return err },
		"read long":          func() error { _, err := decodeRead(change(read, func(b []byte) { b[58] = 0xff })); return err },
		"read all from 1":    func() error { _, err := decodeRead(change(read, func(b []byte) { b[56] = 0 })); return err },
		"read zero bytes":    func() error { _, err := decodeRead(change(read, func(b []byte) { b[63] = 1 })); return err },
		"list no limit":      func() error { _, err := decodeList(change(list, func(b []byte) { b[80] = 0 })); return err },
		"list large page":    func() error { _, err := decodeList(change(list, func(b []byte) { b[82] = 1 })); return err },
		"delete none":        func() error { _, err := decodeDelete(change(del, func(b []byte) { b[40] = 0 })); return err },
		"delete more":        func() error { _, err := decodeDelete(change(del, func(b []byte) { b[40] = 2 })); return err },
		"page going back": func() error {
			_, err := decodeListPage(listPage{[]brick.Ref{ref(1)}, false}.encode(), ref(1))
			return err
		},
		"page out of order": func() error {
			_, err := decodeListPage(listPage{[]brick.Ref{ref(2), ref(1)}, false}.encode(), brick.Ref{})
			return err
		},
		"page empty with more": func() error { _, err := decodeListPage(listPage{nil, true}.encode(), brick.Ref{}); return err },
		"page large extent": func() error {
			_, err := decodeListPage(listPage{[]brick.Ref{{Number: 1, Size: ExtentMax + 1}}, false}.encode(), brick.Ref{})
			return err
		},
		"sizes":          func() error { _, err := decodeSizes(encodeSizes([]int64{-2}), 1); return err },
		"sizes of other": func() error { _, err := decodeSizes(encodeSizes([]int64{1}), 2); return err },
		"seal":           func() error { _, err := decodeSeal(make([]byte, sealSize+1)); return err },
		"check":          func() error { _, err := decodeCheck(make([]byte, checkSize-1)); return err },
	} {
		if err := f(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzMessages gives the same bytes to every decoder; what is accepted must
// encode to the same bytes again.
func FuzzMessages(f *testing.F) {
	put := samplePut()
	del := deleteRequest{mBrick, mVol, 7, []ident.Addr{mAddr}}
	stat := statRequest{mBrick, []ident.Addr{mAddr}}
	for _, b := range [][]byte{encodePut(put), readRequest{mBrick, mAddr, 1, 2}.encode(), del.encode(), stat.encode(),
		listRequest{mBrick, mVol, brick.Ref{}, 5}.encode(), listPage{[]brick.Ref{{Addr: mAddr, Number: 1}}, true}.encode(),
		sealRequest{mVol, 1}.encode(), checkRequest{mBrick, mAddr}.encode(), encodeSizes([]int64{1, -1})} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, again []byte, err error) {
			if err == nil && !bytes.Equal(again, b) {
				t.Fatalf("%s does not encode to the same", what)
			}
			if err != nil && !fault.Is(err, fault.Invalid) {
				t.Fatal(what, err)
			}
		}
		p, err := decodePut(b)
		same("put", encodePut(p), err)
		r, err := decodeRead(b)
		same("read", r.encode(), err)
		d, err := decodeDelete(b)
		same("delete", d.encode(), err)
		l, err := decodeList(b)
		same("list", l.encode(), err)
		g, err := decodeListPage(b, brick.Ref{})
		same("page", g.encode(), err)
		s, err := decodeStat(b)
		same("stat", s.encode(), err)
		e, err := decodeSeal(b)
		same("seal", e.encode(), err)
		c, err := decodeCheck(b)
		same("check", c.encode(), err)
		if n := len(b) / 8; n > 0 && n < 100 {
			z, err := decodeSizes(b[:n*8], n)
			if err == nil && !bytes.Equal(encodeSizes(z), b[:n*8]) {
				t.Fatal("sizes do not encode to the same")
			}
		}
	})
}
