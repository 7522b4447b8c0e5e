//! The picture for the README: ratio against size of the message, a curve for round trips and one for the stream.

use anyhow::{Result, anyhow, ensure};
use plotters::prelude::*;

use super::scenarios::{CURVES, shown_size};
use crate::comparison::Comparison;

const SIZE: (u32, u32) = (840, 460);
const COLOURS: [RGBColor; 2] = [RGBColor(31, 119, 180), RGBColor(214, 96, 39)];
/// Ratios of the grid's lines. The axis is logarithmic: twice as fast is as far above 1 as half as fast is below.
const RATIOS: [f64; 9] = [0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0];

/// One curve.
struct Curve {
    name: &'static str,
    colour: RGBColor,
    /// Size and ratio, by size.
    points: Vec<(f64, f64)>,
}

/// The picture as SVG.
///
/// # Errors
/// Nothing that was measured belongs to it.
pub(super) fn plot(rows: &[Comparison]) -> Result<String> {
    let curves: Vec<_> = CURVES.into_iter().zip(COLOURS).map(|(name, colour)| curve(rows, name, colour)).collect();
    ensure!(
        curves.iter().any(|curve| !curve.points.is_empty()),
        "no round trip and no stream was measured, so there is nothing to plot: leave out --svg, or measure them (`--only`)"
    );
    let mut svg = String::new();
    draw(&curves, &SVGBackend::with_string(&mut svg, SIZE).into_drawing_area()).map_err(|error| anyhow!("cannot draw: {error}"))?;
    Ok(svg)
}

fn curve(rows: &[Comparison], name: &'static str, colour: RGBColor) -> Curve {
    let point = |one: &Comparison| match &one.row.point {
        Some((curve, size)) if curve == name => Some((*size as f64, one.result())),
        _ => None,
    };
    let mut points: Vec<_> = rows.iter().filter_map(point).collect();
    points.sort_by(|left, right| left.0.total_cmp(&right.0));
    Curve { name, colour, points }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw(curves: &[Curve], area: &Area<'_>) -> Drawn {
    area.fill(&WHITE)?;
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let sizes = all().fold((f64::INFINITY, 1.0_f64), |(least, most), (size, _)| (least.min(*size), most.max(*size)));
    let ratios = all().fold((0.8_f64, 2.0_f64), |(least, most), (_, ratio)| (least.min(*ratio), most.max(*ratio)));
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .caption("Throughput, times that of the plain Unix socket", ("sans-serif", 19))
        .x_label_area_size(48)
        .y_label_area_size(56)
        .build_cartesian_2d(
            (sizes.0 / 1.3..sizes.1 * 1.3).log_scale().base(2.0),
            (ratios.0 / 1.1..ratios.1 * 1.15).log_scale().with_key_points(RATIOS.to_vec()),
        )?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_desc("size of a message")
        .x_labels(11)
        .x_label_formatter(&|size| shown_size(size.round() as usize))
        .y_label_formatter(&|ratio| format!("{ratio}×"))
        .label_style(("sans-serif", 14))
        .draw()?;
    let equal = [(sizes.0 / 1.3, 1.0), (sizes.1 * 1.3, 1.0)];
    chart.draw_series(LineSeries::new(equal, BLACK.mix(0.6)))?;
    for curve in curves {
        let colour = curve.colour;
        chart
            .draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(2)));
        chart.draw_series(curve.points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw()?;
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::Judged;
    use crate::comparison::tests::comparison;

    #[test]
    fn both_curves_are_drawn() {
        let rows: Vec<_> = [(0, 64, 12.0), (0, 1, 13.0), (0, 1 << 20, 0.9), (1, 64, 15.0), (1, 4096, 3.0)]
            .into_iter()
            .map(|(curve, size, ratio)| {
                let mut one = comparison("a", Judged::Rate, &[(1.0, ratio)]);
                one.row.point = Some((CURVES[curve].to_owned(), size));
                one
            })
            .collect();
        let svg = plot(&rows).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for (curve, colour, points) in [(CURVES[0], "#1F77B4", 3), (CURVES[1], "#D66027", 2)] {
            assert!(svg.contains(curve), "no {curve} in {svg}");
            assert_eq!(svg.lines().filter(|line| line.contains("<circle") && line.contains(colour)).count(), points, "{svg}");
        }
        assert_eq!(curve(&rows, CURVES[0], BLACK).points, [(1.0, 13.0), (64.0, 12.0), (1_048_576.0, 0.9)]);
    }

    #[test]
    fn nothing_to_plot_is_said() {
        assert!(plot(&[comparison("a", Judged::Rate, &[(1.0, 2.0)])]).unwrap_err().to_string().contains("--svg"));
    }
}
