package extent

import (
	"fmt"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// BenchmarkCodec compares the candidates on single blocks: why appendBlock
// uses s2. The ratio is raw bytes for each stored byte.
func BenchmarkCodec(b *testing.B) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	codecs := []struct {
		name           string
		encode, decode func(dst, src []byte) ([]byte, error)
	}{
		{"s2", func(d, s []byte) ([]byte, error) { return s2.Encode(d[:cap(d)], s), nil },
			func(d, s []byte) ([]byte, error) { return s2.Decode(d[:cap(d)], s) }},
		{"s2better", func(d, s []byte) ([]byte, error) { return s2.EncodeBetter(d[:cap(d)], s), nil },
			func(d, s []byte) ([]byte, error) { return s2.Decode(d[:cap(d)], s) }},
		{"zstd", func(d, s []byte) ([]byte, error) { return enc.EncodeAll(s, d[:0]), nil },
			func(d, s []byte) ([]byte, error) { return dec.DecodeAll(s, d[:0]) }},
	}
	src := pages(1)
	for _, c := range codecs {
		for _, kind := range []string{"text", "page", "random"} {
			out, _ := c.encode(make([]byte, 0, scratchSize), src[kind])
			ratio := float64(BlockSize) / float64(len(out))
			b.Run(fmt.Sprintf("%s/%s/encode", c.name, kind), func(b *testing.B) {
				dst := make([]byte, 0, scratchSize)
				b.SetBytes(BlockSize)
				for b.Loop() {
					_, _ = c.encode(dst, src[kind])
				}
				b.ReportMetric(ratio, "ratio")
			})
			b.Run(fmt.Sprintf("%s/%s/decode", c.name, kind), func(b *testing.B) {
				dst := make([]byte, 0, BlockSize)
				b.SetBytes(BlockSize)
				for b.Loop() {
					if _, err := c.decode(dst, out); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkBuild is what a checkpoint pays for a full extent of mixed pages.
func BenchmarkBuild(b *testing.B) {
	src := pages(1)
	var bld Builder
	b.SetBytes(BlocksMax * BlockSize)
	for b.Loop() {
		bld.Reset(testVolume, 1, 1)
		for !bld.Full() {
			bld.Add(0, src[[]string{"text", "page", "page", "random"}[bld.Count()%4]])
		}
		Address(bld.Finish())
	}
}
