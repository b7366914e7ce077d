//! The curves: requests a second and memory, from 1 to 256 VMs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use plotters::prelude::*;
use tokio::time::Instant;

use crate::Result;
use crate::load::{self, Load, Target};
use crate::nats::{Caller, Repeat};
use crate::supervisor::{self, Fleet};

#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// The most VMs
    #[arg(long, default_value_t = 256)]
    most: usize,
    /// How many requests for each number of VMs
    #[arg(long, default_value_t = 10_000)]
    requests: u64,
    /// Sends the requests through this NATS server
    #[arg(long)]
    nats: Option<String>,
    /// The answers' size in bytes
    #[arg(long, default_value_t = 1024)]
    size: u32,
    /// Where the drawing goes
    #[arg(long, default_value = "fleet.svg")]
    svg: PathBuf,
}

/// What was measured with one number of VMs.
struct Point {
    vms: usize,
    requests_a_second: f64,
    mib: f64,
    start: Duration,
}

/// Measures, prints each point and draws the curves.
///
/// # Errors
///
/// If a request fails, or the drawing cannot be written.
pub async fn run(settings: &Settings) -> Result {
    let mut points = Vec::new();
    println!(
        "{:>5} {:>12} {:>8} {:>12} {:>9}",
        "VMs", "requests/s", "MiB", "MiB for each", "start"
    );
    for vms in std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n <= settings.most) {
        let point = measure(settings, vms).await?;
        let Point {
            requests_a_second,
            mib,
            start,
            ..
        } = point;
        println!(
            "{vms:>5} {requests_a_second:>12.0} {mib:>8.0} {:>12.2} {start:>9.1?}",
            mib / vms as f64
        );
        points.push(point);
    }
    draw(settings, &points)
}

async fn measure(settings: &Settings, vms: usize) -> Result<Point> {
    let begun = Instant::now();
    let fleet = Arc::new(
        Fleet::start(supervisor::Settings {
            vms,
            program: std::env::current_exe()?,
            host: "vm".into(),
            microvm: false,
            nats: settings.nats.clone(),
            stall: Duration::from_secs(30),
            journal: None,
        })
        .await?,
    );
    fleet.serving().await;
    let start = begun.elapsed();
    let target = match &settings.nats {
        Some(server) => Target::Nats(Caller::connect(server).await?, Repeat::Never),
        None => Target::Here(fleet.clone()),
    };
    let load = Load {
        requests: settings.requests,
        at_once: (vms * 2).max(8),
        limit: Duration::from_secs(60),
        size: Some(settings.size),
        first_key: 0,
    };
    let counts = load::run(&target, &load, &AtomicU64::new(0)).await;
    let pids = fleet.status().into_iter().filter_map(|status| status.pid);
    let mib = pids.filter_map(supervisor::memory_mib).sum();
    drop(target);
    if let Some(fleet) = Arc::into_inner(fleet) {
        fleet.shut_down().await;
    }
    if counts.answered != counts.asked || !counts.add_up() {
        return Err(format!("{vms} VMs: {counts}").into());
    }
    Ok(Point {
        vms,
        requests_a_second: counts.answered as f64 / counts.took.as_secs_f64(),
        mib,
        start,
    })
}

fn draw(settings: &Settings, points: &[Point]) -> Result {
    let root = SVGBackend::new(&settings.svg, (760, 320)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(380);
    let way = if settings.nats.is_some() {
        "NATS"
    } else {
        "Unix sockets"
    };
    let rate: Vec<_> = points
        .iter()
        .map(|point| (point.vms as f64, point.requests_a_second))
        .collect();
    let mib: Vec<_> = points
        .iter()
        .map(|point| (point.vms as f64, point.mib))
        .collect();
    curve(&left, &format!("Requests a second, {way}"), &rate, &BLUE)?;
    curve(&right, "Memory of the VMs' processes, MiB", &mib, &RED)?;
    Ok(root.present()?)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn curve(area: &Area<'_>, title: &str, points: &[(f64, f64)], color: &RGBColor) -> Result {
    let most = points.iter().map(|point| point.1).fold(1.0, f64::max) * 1.1;
    let last = points.last().map_or(2.0, |point| point.0.max(2.0));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d((1.0..last).log_scale().base(2.0), 0.0..most)?;
    let number = |n: &f64| format!("{n:.0}");
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("VMs")
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .light_line_style(TRANSPARENT)
        .draw()?;
    chart.draw_series(LineSeries::new(
        points.iter().copied(),
        color.stroke_width(2),
    ))?;
    chart.draw_series(
        points
            .iter()
            .map(|&point| Circle::new(point, 3, color.filled())),
    )?;
    Ok(())
}
