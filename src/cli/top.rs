//! `tallyd top`: the names that a server gets, live.

use std::time::{Duration, Instant};

use clap::Args;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Row, Table, TableState};
use serde_json::Value as Json;

use super::client::{Asked, Client, quoted};
use super::names::{Order, Snapshot, short};
use crate::config::Sources;

/// Watch the names that a running server gets: sort, filter, and look at the tags of one.
#[derive(Debug, Args)]
pub struct Top {
    /// Seconds between two looks.
    #[arg(short, long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    #[command(flatten)]
    asked: Asked,
}

/// What is on the screen.
#[derive(Debug, Default)]
struct Screen {
    snapshot: Snapshot,
    before: Option<(i64, f64)>,
    order: Order,
    filter: String,
    /// The filter is being typed.
    typing: bool,
    chosen: TableState,
    /// The name whose tags are shown, and its document of `/api/cost`.
    tags: Option<(String, Json)>,
    problem: Option<String>,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    Look,
    End,
}

impl Top {
    pub fn run(&self, sources: &Sources) -> anyhow::Result<u8> {
        let client = self.asked.client(sources)?;
        // A server that is not there is told before the screen is taken.
        let mut screen = Screen { snapshot: Snapshot::ask(&client)?, ..Screen::default() };
        let mut terminal = ratatui::try_init()?;
        let ended = self.watch(&client, &mut terminal, &mut screen);
        ratatui::restore();
        ended.map(|()| 0)
    }

    fn watch(
        &self,
        client: &Client,
        terminal: &mut ratatui::DefaultTerminal,
        screen: &mut Screen,
    ) -> anyhow::Result<()> {
        let interval = Duration::from_secs(self.interval);
        let mut next = Instant::now() + interval;
        loop {
            terminal.draw(|frame| screen.draw(frame))?;
            let mut wish = Wish::Nothing;
            if event::poll(next.saturating_duration_since(Instant::now()))? {
                if let Event::Key(key) = event::read()?
                    && key.kind == KeyEventKind::Press
                {
                    wish = screen.key(key);
                }
            } else {
                wish = Wish::Look;
            }
            match wish {
                Wish::Nothing => {}
                Wish::Look => {
                    screen.look(client);
                    next = Instant::now() + interval;
                }
                Wish::End => return Ok(()),
            }
        }
    }
}

impl Screen {
    fn look(&mut self, client: &Client) {
        let tags = self.tags.as_ref().map(|(name, _)| name.clone());
        let answer = Snapshot::ask(client).and_then(|snapshot| {
            let ask = |name: String| {
                let path = format!("/api/cost?limit=100&name={}", quoted(&name));
                client.json(&path).map(|cost| (name, cost))
            };
            Ok((snapshot, tags.map(ask).transpose()?))
        });
        match answer {
            Ok((snapshot, tags)) => {
                self.before = Some((self.snapshot.time, self.snapshot.cpu_seconds));
                (self.snapshot, self.tags, self.problem) = (snapshot, tags, None);
            }
            Err(error) => self.problem = Some(crate::logging::one_line(&error)),
        }
    }

    fn key(&mut self, key: KeyEvent) -> Wish {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Wish::End;
        }
        if self.typing {
            match key.code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(typed) => self.filter.push(typed),
                _ => {}
            }
            return Wish::Nothing;
        }
        match key.code {
            KeyCode::Char('q') => return Wish::End,
            KeyCode::Char('l') => self.order = Order::Lines,
            KeyCode::Char('b') => self.order = Order::Bytes,
            KeyCode::Char('s') => self.order = Order::Series,
            KeyCode::Char('n') => self.order = Order::Name,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Down | KeyCode::Char('j') => self.chosen.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.chosen.select_previous(),
            KeyCode::PageDown => self.chosen.scroll_down_by(20),
            KeyCode::PageUp => self.chosen.scroll_up_by(20),
            KeyCode::Enter if self.tags.is_none() => {
                let names = self.snapshot.sorted(self.order, &self.filter);
                if let Some(name) = self.chosen.selected().and_then(|at| names.get(at)) {
                    self.tags = Some((name.name.clone(), Json::Null));
                    return Wish::Look;
                }
            }
            KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace => self.tags = None,
            _ => {}
        }
        Wish::Nothing
    }

    fn draw(&mut self, frame: &mut Frame) {
        let heights = [Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)];
        let [head, middle, foot] = Layout::vertical(heights).areas(frame.area());
        frame.render_widget(ratatui::widgets::Paragraph::new(self.head()), head);
        let table = if self.tags.is_some() { self.tags_table() } else { self.names_table() };
        frame.render_stateful_widget(table, middle, &mut self.chosen);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self) -> Vec<Line<'static>> {
        let now = &self.snapshot;
        let cpu = self.before.filter(|(time, _)| *time < now.time).map_or(0.0, |(time, cpu)| {
            (now.cpu_seconds - cpu) / ((now.time - time) as f64 / 1000.0) * 100.0
        });
        let first = format!(
            "tallyd  {} lines/s  {} series  {cpu:.1} % of a core  {} MB",
            short(now.lines),
            now.series,
            now.rss_bytes / 1_000_000,
        );
        let lost: u64 = now.lost.values().sum();
        let second = match (&self.problem, now.lost.iter().max_by_key(|(_, count)| **count)) {
            (Some(problem), _) => Line::styled(problem.clone(), Modifier::REVERSED),
            (None, Some((cause, count))) => {
                Line::styled(format!("lost: {lost}, of which {count} {cause}"), Modifier::BOLD)
            }
            (None, None) => Line::from("nothing lost"),
        };
        vec![Line::from(first), second]
    }

    fn names_table(&self) -> Table<'static> {
        let names = self.snapshot.sorted(self.order, &self.filter);
        let rows = names.into_iter().map(|name| {
            Row::new([
                format!("{:>7}", short(name.lines)),
                format!("{:>7}", short(name.bytes)),
                format!("{:>7}", name.series),
                name.kind.clone(),
                name.name.escape_debug().to_string(),
            ])
        });
        let widths = [
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Length(12),
            Constraint::Min(10),
        ];
        table(rows.collect(), &widths, ["LINES/S", "BYTES/S", " SERIES", "KIND", "NAME"])
    }

    fn tags_table(&self) -> Table<'static> {
        let keys = self.tags.as_ref().and_then(|(_, cost)| cost["keys"].as_array());
        let rows = keys.into_iter().flatten().map(|key| {
            Row::new([
                format!("{:>7}", key["values"].as_u64().unwrap_or_default()),
                format!("{:>7}", key["series"].as_u64().unwrap_or_default()),
                format!("{:>13}", key["saved"].as_u64().unwrap_or_default()),
                key["key"].as_str().unwrap_or_default().escape_debug().to_string(),
            ])
        });
        let widths = [
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Length(13),
            Constraint::Min(10),
        ];
        table(rows.collect(), &widths, [" VALUES", " SERIES", "FEWER WITHOUT", "TAG KEY"])
    }

    fn foot(&self) -> Line<'static> {
        if self.typing {
            return Line::from(format!("filter: {}_  Enter keeps it, Esc clears it", self.filter));
        }
        if let Some((name, _)) = &self.tags {
            return Line::from(format!("tags of {}  Esc back  q quit", name.escape_debug()));
        }
        let filter =
            if self.filter.is_empty() { String::new() } else { format!("[{}]  ", self.filter) };
        Line::from(format!(
            "{filter}sort: l lines b bytes s series n name  / filter  Enter tags  q quit"
        ))
    }
}

fn table<const N: usize>(
    rows: Vec<Row<'static>>,
    widths: &[Constraint],
    head: [&'static str; N],
) -> Table<'static> {
    Table::new(rows, widths.to_vec())
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;
    use crate::cli::names::tests::snapshot;

    fn shown(screen: &mut Screen) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 8)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let cells = terminal.backend().buffer().content();
        let line = |cells: &[ratatui::buffer::Cell]| {
            cells.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()
        };
        cells.chunks(80).map(line).collect()
    }

    fn press(screen: &mut Screen, keys: &str) -> Wish {
        let mut wish = Wish::Nothing;
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\u{1b}' => KeyCode::Esc,
                'v' => KeyCode::Down,
                other => KeyCode::Char(other),
            };
            wish = screen.key(KeyEvent::new(code, KeyModifiers::NONE));
        }
        wish
    }

    #[test]
    fn names_are_sorted_filtered_and_opened_in_80_columns() {
        let before = Some((4000, 1.0));
        let mut screen = Screen { snapshot: snapshot(), before, ..Screen::default() };
        assert_eq!(
            shown(&mut screen),
            [
                "tallyd  41 lines/s  8 series  50.0 % of a core  9 MB",
                "lost: 3, of which 3 lines refused at udp://x (type)",
                "LINES/S BYTES/S  SERIES KIND         NAME",
                "     30      90       0 timer        b",
                "     10     100       5 count        a",
                "      0       0       3              idle",
                "",
                "sort: l lines b bytes s series n name  / filter  Enter tags  q quit",
            ]
        );
        assert_eq!(press(&mut screen, "s/a"), Wish::Nothing);
        let lines = shown(&mut screen);
        assert_eq!(lines[3], "     10     100       5 count        a");
        assert_eq!(lines[4], "");
        assert_eq!(lines[7], "filter: a_  Enter keeps it, Esc clears it");
        // Enter ends the typing, the second opens the chosen name.
        assert_eq!(press(&mut screen, "\nv\n"), Wish::Look);
        let cost = json!({"keys": [{"key": "user", "values": 9, "series": 5, "saved": 4}]});
        screen.tags = Some(("a".to_owned(), cost));
        let lines = shown(&mut screen);
        assert_eq!(lines[2], " VALUES  SERIES FEWER WITHOUT TAG KEY");
        assert_eq!(lines[3], "      9       5             4 user");
        assert_eq!(lines[7], "tags of a  Esc back  q quit");
        press(&mut screen, "\u{1b}");
        assert_eq!(shown(&mut screen)[7][..4], *"[a] ");
        assert_eq!(press(&mut screen, "q"), Wish::End);
    }
}
