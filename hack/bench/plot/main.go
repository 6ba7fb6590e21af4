// Command plot draws what command bench has measured: for each figure a picture with a line for
// each proxy and mode, over the number of Services, both axes logarithmic.
//
// It is a separate module, so that Fairlead does not depend on a plotting library.
package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// figures are the columns to draw.
var figures = []struct{ column, file, title, unit string }{
	{"cold_start_s", "cold-start", "Cold start until the last Service answers", "seconds"},
	{"change_p50_s", "change", "One changed endpoint: API write to first connection", "seconds"},
	{"change_cpu_s", "change-cpu", "CPU time for one changed endpoint", "seconds"},
	{"rolling_s", "rolling", "Rolling update of 1,000 endpoints", "seconds"},
	{"peak_rss_bytes", "memory", "Peak resident memory", "bytes"},
	{"through_service_ratio", "connections", "New connections through a Service, ratio to none", "ratio"},
}

// colours are those of the modes; a proxy is told by its line.
var colours = map[string]color.Color{
	"nftables":        color.RGBA{R: 0x1b, G: 0x7f, B: 0x79, A: 0xff},
	"iptables-nft":    color.RGBA{R: 0x2b, G: 0x5d, B: 0xa8, A: 0xff},
	"iptables-legacy": color.RGBA{R: 0xb0, G: 0x6a, B: 0x10, A: 0xff},
	"ipvs":            color.RGBA{R: 0x8e, G: 0x2f, B: 0x6b, A: 0xff},
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: plot RESULTS.csv DIRECTORY")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

// line is a proxy in a mode.
type line struct{ proxy, mode string }

func run(path, dir string) error {
	rows, err := read(path)
	if err != nil {
		return err
	}
	for _, f := range figures {
		points := make(map[line]plotter.XYs)
		var lines []line
		for _, row := range rows {
			y, err := strconv.ParseFloat(row[f.column], 64)
			if err != nil || y <= 0 { // not measured, or too small for its clock
				continue
			}
			x, err := strconv.ParseFloat(row["services"], 64)
			if err != nil {
				return fmt.Errorf("%s: services %q: %w", path, row["services"], err)
			}
			l := line{row["proxy"], row["mode"]}
			if points[l] == nil {
				lines = append(lines, l)
			}
			points[l] = append(points[l], plotter.XY{X: x, Y: y})
		}
		if len(lines) == 0 {
			continue
		}
		if err := picture(filepath.Join(dir, f.file+".svg"), f.title, f.unit, lines, points); err != nil {
			return fmt.Errorf("draw %s: %w", f.file, err)
		}
	}
	return nil
}

func read(path string) ([]map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	records, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(records) < 2 {
		return nil, errors.New(path + " holds no results")
	}
	var rows []map[string]string
	for _, r := range records[1:] {
		row := make(map[string]string)
		for i, name := range records[0] {
			row[name] = r[i]
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func picture(path, title, unit string, lines []line, points map[line]plotter.XYs) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, "Services", unit
	p.BackgroundColor = color.White
	if unit != "ratio" {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	} else {
		p.Y.Min, p.Y.Max = 0, 1.2
	}
	var sizes []float64
	for _, l := range lines {
		for _, xy := range points[l] {
			sizes = append(sizes, xy.X)
		}
	}
	if slices.Max(sizes) > slices.Min(sizes) {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	p.Add(plotter.NewGrid())
	legend := plot.NewLegend()
	legend.Top, legend.Left, legend.XOffs = true, true, vg.Points(8)
	for _, l := range lines {
		xys := points[l]
		slices.SortFunc(xys, func(a, b plotter.XY) int { return int(a.X - b.X) })
		curve, dots, err := plotter.NewLinePoints(xys)
		if err != nil {
			return err
		}
		curve.Color, dots.Color = colours[l.mode], colours[l.mode]
		curve.Width = vg.Points(1.5)
		dots.Shape = draw.CircleGlyph{}
		if l.proxy != "fairlead" {
			curve.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
			dots.Shape = draw.CrossGlyph{}
		}
		p.Add(curve, dots)
		legend.Add(l.proxy+" "+l.mode, curve, dots)
	}
	// The legend is next to the plot, where it hides nothing.
	const width, beside, height = 18 * vg.Centimeter, 6 * vg.Centimeter, 10 * vg.Centimeter
	canvas := vgsvg.New(width+beside, height)
	all := draw.New(canvas)
	p.Draw(draw.Crop(all, 0, -beside, 0, 0))
	all.SetColor(color.White)
	right := draw.Crop(all, width, 0, 0, 0)
	all.Fill(right.Rectangle.Path())
	legend.Draw(draw.Crop(right, 0, 0, 0, -vg.Centimeter))
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(f)
	return errors.Join(err, f.Close())
}
