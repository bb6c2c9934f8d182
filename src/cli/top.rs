//! `tallyd top`: the names that a server gets, and their senders, live.

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

/// Watch the names that a running server gets, and who sends them: sort, filter, and look at the tags
/// of a name or the names of a sender.
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
    /// Of an earlier look the time and the CPU seconds.
    before: Option<(i64, f64)>,
    list: List,
    order: Order,
    filter: String,
    /// The filter is being typed.
    typing: bool,
    chosen: TableState,
    /// What is looked at closely, and its document of `/api/cost`.
    detail: Option<(Detail, Json)>,
    problem: Option<String>,
}

/// What is listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum List {
    #[default]
    Names,
    Senders,
}

/// The tags of a name, or the names of a sender.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Detail {
    Name(String),
    Sender(String),
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
        let detail = self.detail.as_ref().map(|(of, _)| of.clone());
        let answer = Snapshot::ask(client).and_then(|snapshot| {
            let ask = |of: Detail| {
                let (key, value) = match &of {
                    Detail::Name(name) => ("name", name),
                    Detail::Sender(sender) => ("sender", sender),
                };
                let path = format!("/api/cost?limit=100&{key}={}", quoted(value));
                client.json(&path).map(|cost| (of, cost))
            };
            Ok((snapshot, detail.map(ask).transpose()?))
        });
        match answer {
            Ok((mut snapshot, detail)) => {
                snapshot.since(&self.snapshot);
                self.before = Some((self.snapshot.time, self.snapshot.cpu_seconds));
                (self.snapshot, self.detail, self.problem) = (snapshot, detail, None);
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
            KeyCode::Char('w') => self.order = Order::Sender,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Tab | KeyCode::BackTab => {
                self.list = match self.list {
                    List::Names => List::Senders,
                    List::Senders => List::Names,
                };
                (self.detail, self.chosen) = (None, TableState::default());
            }
            KeyCode::Down | KeyCode::Char('j') => self.chosen.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.chosen.select_previous(),
            KeyCode::PageDown => self.chosen.scroll_down_by(20),
            KeyCode::PageUp => self.chosen.scroll_up_by(20),
            KeyCode::Enter if self.detail.is_none() => {
                if let Some(of) = self.chosen.selected().and_then(|at| self.listed(at)) {
                    self.detail = Some((of, Json::Null));
                    return Wish::Look;
                }
            }
            KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace => self.detail = None,
            _ => {}
        }
        Wish::Nothing
    }

    /// What stands in this row.
    fn listed(&self, at: usize) -> Option<Detail> {
        let (order, filter) = (self.order, self.filter.as_str());
        match self.list {
            List::Names => self
                .snapshot
                .sorted(order, filter)
                .get(at)
                .map(|one| Detail::Name(one.name.clone())),
            List::Senders => {
                let senders = self.snapshot.senders(order, filter);
                senders.get(at).map(|one| Detail::Sender(one.sender.clone()))
            }
        }
    }

    fn draw(&mut self, frame: &mut Frame) {
        let heights = [Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)];
        let [head, middle, foot] = Layout::vertical(heights).areas(frame.area());
        frame.render_widget(ratatui::widgets::Paragraph::new(self.head()), head);
        let table = match (&self.detail, self.list) {
            (Some((Detail::Name(_), cost)), _) => tags_table(cost),
            (Some((Detail::Sender(_), cost)), _) => costs_table(cost),
            (None, List::Names) => self.names_table(),
            (None, List::Senders) => self.senders_table(),
        };
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
                name.senders().unwrap_or_default(),
            ])
        });
        let widths = [
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Length(12),
            Constraint::Fill(3),
            Constraint::Fill(2),
        ];
        let head = ["LINES/S", "BYTES/S", " SERIES", "KIND", "NAME", "SENDER"];
        table(rows.collect(), &widths, head)
    }

    fn senders_table(&self) -> Table<'static> {
        let senders = self.snapshot.senders(self.order, &self.filter);
        let rows = senders.into_iter().map(|one| {
            // A rate takes two looks.
            let rate = |at: usize| one.rate.map_or_else(String::new, |rate| short(rate[at]));
            Row::new([
                format!("{:>7}", rate(0)),
                format!("{:>7}", rate(1)),
                format!("{:>7}", one.series),
                format!("{:>7}", short(one.refused as f64)),
                format!("{:>7}", short(one.dropped as f64)),
                one.sender.escape_debug().to_string(),
            ])
        });
        let widths = [Constraint::Length(7); 5].into_iter().chain([Constraint::Min(10)]);
        let head = ["LINES/S", "BYTES/S", " SERIES", "REFUSED", "DROPPED", "SENDER"];
        table(rows.collect(), &widths.collect::<Vec<_>>(), head)
    }

    fn foot(&self) -> Line<'static> {
        if self.typing {
            return Line::from(format!("filter: {}_  Enter keeps it, Esc clears it", self.filter));
        }
        match &self.detail {
            Some((Detail::Name(name), _)) => {
                return Line::from(format!("tags of {}  Esc back  q quit", name.escape_debug()));
            }
            Some((Detail::Sender(sender), _)) => {
                let sender = sender.escape_debug();
                return Line::from(format!("series first sent by {sender}  Esc back  q quit"));
            }
            None => {}
        }
        let keys = match self.list {
            List::Names => "w who  Tab senders  / filter  Enter tags  q",
            List::Senders => "w losses  Tab names  / filter  Enter  q",
        };
        match self.filter.as_str() {
            "" => Line::from(format!("sort l lines b bytes s series n name {keys}")),
            // What the letters mean is known by then.
            filter => Line::from(format!("[{filter}]  sort l b s n {keys}")),
        }
    }
}

/// Tag keys of a name.
fn tags_table(cost: &Json) -> Table<'static> {
    let rows = list(&cost["keys"]).map(|key| {
        Row::new([
            format!("{:>7}", number(&key["values"])),
            format!("{:>7}", number(&key["series"])),
            format!("{:>13}", number(&key["saved"])),
            word(&key["key"]),
        ])
    });
    let widths =
        [Constraint::Length(7), Constraint::Length(7), Constraint::Length(13), Constraint::Min(10)];
    table(rows.collect(), &widths, [" VALUES", " SERIES", "FEWER WITHOUT", "TAG KEY"])
}

/// Names of a sender, and then its tag keys.
fn costs_table(cost: &Json) -> Table<'static> {
    let names = list(&cost["names"]).map(|name| {
        Row::new([format!("{:>7}", number(&name["series"])), String::new(), word(&name["name"])])
    });
    let keys = list(&cost["keys"]).map(|key| {
        let key_of = format!("{}:*", word(&key["key"]));
        let [series, saved] = ["series", "saved"].map(|field| number(&key[field]));
        Row::new([format!("{series:>7}"), format!("{saved:>13}"), key_of])
    });
    let widths = [Constraint::Length(7), Constraint::Length(13), Constraint::Min(10)];
    let head = [" SERIES", "FEWER WITHOUT", "NAME OR TAG KEY"];
    table(names.chain(keys).collect(), &widths, head)
}

fn list(list: &Json) -> impl Iterator<Item = &Json> {
    list.as_array().into_iter().flatten()
}

fn number(value: &Json) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn word(value: &Json) -> String {
    value.as_str().unwrap_or_default().escape_debug().to_string()
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
                '\t' => KeyCode::Tab,
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
                "LINES/S BYTES/S  SERIES KIND         NAME                      SENDER",
                "     30      90       0 timer        b",
                "     10     100       5 count        a                         app[7] uid 0 +2",
                "      0       0       3              idle                      container web-1",
                "",
                "sort l lines b bytes s series n name w who  Tab senders  / filter  Enter tags  q",
            ]
        );
        assert_eq!(press(&mut screen, "s/a"), Wish::Nothing);
        let lines = shown(&mut screen);
        assert_eq!(lines[3][..38], *"     10     100       5 count        a");
        assert_eq!(lines[4], "");
        assert_eq!(lines[7], "filter: a_  Enter keeps it, Esc clears it");
        // Enter ends the typing, the second opens the chosen name.
        assert_eq!(press(&mut screen, "\nv\n"), Wish::Look);
        let cost = json!({"keys": [{"key": "user", "values": 9, "series": 5, "saved": 4}]});
        assert_eq!(screen.detail, Some((Detail::Name("a".to_owned()), Json::Null)));
        screen.detail = Some((Detail::Name("a".to_owned()), cost));
        let lines = shown(&mut screen);
        assert_eq!(lines[2], " VALUES  SERIES FEWER WITHOUT TAG KEY");
        assert_eq!(lines[3], "      9       5             4 user");
        assert_eq!(lines[7], "tags of a  Esc back  q quit");
        press(&mut screen, "\u{1b}");
        assert_eq!(shown(&mut screen)[7][..4], *"[a] ");
        assert_eq!(press(&mut screen, "q"), Wish::End);
    }

    #[test]
    fn senders_are_listed_with_their_rates_and_losses_and_opened() {
        let mut now = snapshot();
        let mut then = snapshot();
        then.time -= 2000;
        then.senders.retain(|one| one.sender.starts_with("app"));
        then.senders[0].lines -= 20;
        now.since(&then);
        let mut screen = Screen { snapshot: now, ..Screen::default() };
        press(&mut screen, "\t");
        let lines = shown(&mut screen);
        assert_eq!(lines[2], "LINES/S BYTES/S  SERIES REFUSED DROPPED SENDER");
        assert_eq!(lines[3], "     45     400       3       0       2 container web-1");
        assert_eq!(lines[4], "     10       0       4       4       0 app[7] uid 0");
        assert!(lines[7].starts_with("sort l lines b bytes s series n name w losses  Tab names"));
        press(&mut screen, "w");
        assert!(shown(&mut screen)[3].ends_with("app[7] uid 0"));
        assert_eq!(press(&mut screen, "v\n"), Wish::Look);
        let cost = json!({
            "names": [{"name": "a", "series": 4}],
            "keys": [{"key": "user", "values": 9, "series": 4, "saved": 3}],
        });
        let Some((of, _)) = screen.detail.take() else { panic!("nothing is opened") };
        assert_eq!(of, Detail::Sender("app[7] uid 0".to_owned()));
        screen.detail = Some((of, cost));
        let lines = shown(&mut screen);
        assert_eq!(lines[3], "      4               a");
        assert_eq!(lines[4], "      4             3 user:*");
        assert_eq!(lines[7], "series first sent by app[7] uid 0  Esc back  q quit");
        press(&mut screen, "\u{1b}\t");
        assert!(shown(&mut screen)[2].contains("KIND"));
    }
}
