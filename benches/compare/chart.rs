//! Draws the main table.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::common::place::{Cores, Flavor};
use crate::machine::Machine;
use crate::table::long;
use crate::throughput::{Row, TRANSPORTS, rate};

/// What has a colour: on a light page, and on a dark one.
type Themed = [RGBColor; 2];

const PAGE: Themed = [RGBColor(0xff, 0xff, 0xff), RGBColor(0x0d, 0x11, 0x17)];
const TEXT: Themed = [RGBColor(0x1f, 0x23, 0x28), RGBColor(0xe6, 0xed, 0xf3)];
const NOTE: Themed = [RGBColor(0x57, 0x60, 0x6a), RGBColor(0x9e, 0xa7, 0xb3)];
const GRID: Themed = [RGBColor(0xd8, 0xde, 0xe4), RGBColor(0x30, 0x36, 0x3d)];
const BARS: [Themed; TRANSPORTS.len()] = [
    [RGBColor(0x09, 0x69, 0xda), RGBColor(0x38, 0x8b, 0xfd)],
    [RGBColor(0x8c, 0x95, 0x9f), RGBColor(0x8b, 0x94, 0x9e)],
    [RGBColor(0xd4, 0xa7, 0x2c), RGBColor(0xd2, 0x99, 0x22)],
    [RGBColor(0xa4, 0x75, 0xf9), RGBColor(0xa3, 0x71, 0xf7)],
    [RGBColor(0x4a, 0xc2, 0x6b), RGBColor(0x3f, 0xb9, 0x50)],
];

const FONT: &str = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif";
const WIDTH: u32 = 900;
/// Above the panels: title, notes and legend.
const HEAD: u32 = 124;
/// Of a row, with five bars.
const ROW: u32 = 58;
/// Left of the panels: the names of the rows.
const NAMES: u32 = 128;
/// Below the panels: the axis.
const FOOT: u32 = 34;

/// Draws a panel for each of two places, with the rates over tokio's `current_thread` runtime.
pub(crate) fn draw(path: &Path, rows: &[Row], machine: &Machine) -> Result<(), Box<dyn Error>> {
    let panel = |cores| -> Vec<&Row> {
        let in_panel =
            |row: &&Row| row.setting.cores == cores && row.setting.flavor == Flavor::CurrentThread;
        rows.iter().filter(in_panel).collect()
    };
    let panels = [
        ("not pinned", panel(Cores::Unpinned)),
        ("one core for each side", panel(Cores::Two)),
    ];
    let panels: Vec<_> = panels.iter().filter(|(_, rows)| !rows.is_empty()).collect();
    let Some(most) = panels.iter().map(|(_, rows)| rows.len() as u32).max() else {
        return Err(
            "the chart needs rows of the current_thread runtime, unpinned or on two cores".into(),
        );
    };
    let height = HEAD + most * ROW + FOOT;
    let title = "Throughput of tokio-krun and others in GB/s: more is better";
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&PAGE[0])?;
        let write = |text: &str, x: u32, y: u32, style: TextStyle<'_>| {
            root.draw(&Text::new(text.to_owned(), (x as i32, y as i32), style))
        };
        write(title, 20, 26, bold(style(18.0, &TEXT, HPos::Left)))?;
        write(
            &format!("{}: {}.", machine.processor, machine.kind()),
            20,
            48,
            style(13.0, &NOTE, HPos::Left),
        )?;
        write(
            "In-process guest, current_thread runtime, 4 MiB each way. g→h: from the guest to the host. Figures: tokio-krun.",
            20,
            67,
            style(13.0, &NOTE, HPos::Left),
        )?;
        for (index, name) in TRANSPORTS.iter().enumerate() {
            let x = NAMES + index as u32 * 128;
            let square = [(x as i32, 85), (x as i32 + 12, 97)];
            root.draw(&Rectangle::new(square, BARS[index][0].filled()))?;
            write(name, x + 18, 91, style(13.0, &TEXT, HPos::Left))?;
        }
        let width = (WIDTH - NAMES - 20) / panels.len() as u32;
        for (index, (name, rows)) in panels.iter().enumerate() {
            let left = NAMES + index as u32 * width;
            write(name, left, HEAD - 10, bold(style(14.0, &TEXT, HPos::Left)))?;
            let area = root
                .clone()
                .shrink((left, HEAD), (width - 16, rows.len() as u32 * ROW + FOOT));
            draw_panel(&root, &area, rows, index == 0)?;
        }
        root.present()?;
    }
    std::fs::write(path, with_style(&svg, title))?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel(
    root: &Area<'_>,
    area: &Area<'_>,
    rows: &[&Row],
    names: bool,
) -> Result<(), Box<dyn Error>> {
    let figure = |row: &Row, transport| row.median(transport, rate) / 1e9;
    let all = rows
        .iter()
        .flat_map(|row| (0..TRANSPORTS.len()).map(|index| figure(row, index)));
    // Leaves room for the figure beside the longest bar.
    let most = all.fold(0.0, f64::max) * 1.12;
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(FOOT)
        .build_cartesian_2d(0.0..most, 0.0..rows.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(6)
        .x_label_formatter(&|figure| format!("{figure:.0}"))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID[0])
        .axis_style(GRID[0])
        .label_style(style(12.0, &NOTE, HPos::Center))
        .draw()?;
    for (index, row) in rows.iter().enumerate() {
        let bottom = (rows.len() - 1 - index) as f64;
        let bar = |transport: usize| bottom + 0.9 - 0.16 * transport as f64;
        for (transport, color) in BARS.iter().enumerate() {
            let corners = [
                (0.0, bar(transport)),
                (figure(row, transport), bar(transport) - 0.145),
            ];
            chart.draw_series([Rectangle::new(corners, color[0].filled())])?;
        }
        let value = figure(row, 0);
        let (x, y) = chart.backend_coord(&(value, bar(0) - 0.0725));
        let text = bold(style(11.0, &TEXT, HPos::Left));
        root.draw(&Text::new(long(value), (x + 4, y), text))?;
        if names {
            let (x, y) = chart.backend_coord(&(0.0, bottom + 0.5));
            let text = style(13.0, &TEXT, HPos::Right);
            root.draw(&Text::new(row.work.name(), (x - 8, y), text))?;
        }
    }
    Ok(())
}

fn style(size: f64, color: &Themed, side: HPos) -> TextStyle<'static> {
    // The SVG backend divides by this.
    let font = FontDesc::new(FontFamily::Name(FONT), size * 1.24, FontStyle::Normal);
    font.color(&color[0]).pos(Pos::new(side, VPos::Center))
}

fn bold(style: TextStyle<'_>) -> TextStyle<'_> {
    TextStyle {
        font: style.font.style(FontStyle::Bold),
        ..style
    }
}

/// Adds a title for screen readers, and the colours of a dark page.
fn with_style(svg: &str, title: &str) -> String {
    let mut rules = String::new();
    for [light, dark] in [PAGE, TEXT, NOTE, GRID].into_iter().chain(BARS) {
        let (light, dark) = (hex(light), hex(dark));
        rules +=
            &format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}\n");
    }
    let inner = svg.find('>').expect("an SVG starts with a tag") + 1;
    let (tag, drawing) = svg.split_at(inner);
    let tag = tag.replace("<svg ", "<svg role=\"img\" ");
    format!(
        "{tag}\n<title>{title}</title>\n\
         <style>\n@media (prefers-color-scheme: dark) {{\n{rules}}}\n</style>{drawing}"
    )
}

/// As the SVG backend writes a colour.
fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}
