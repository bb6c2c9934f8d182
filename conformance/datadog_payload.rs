//! What the Datadog intake reads out of a request, by prost and field numbers typed from the
//! published definitions: the judge of the encoders, sharing no code with them.

use std::io::Read;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct MetricPayload {
    #[prost(message, repeated, tag = "1")]
    pub series: Vec<MetricSeries>,
}

#[derive(Clone, PartialEq, Message)]
pub struct MetricSeries {
    #[prost(message, repeated, tag = "1")]
    pub resources: Vec<Resource>,
    #[prost(string, tag = "2")]
    pub metric: String,
    #[prost(string, repeated, tag = "3")]
    pub tags: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    pub points: Vec<MetricPoint>,
    #[prost(enumeration = "MetricType", tag = "5")]
    pub r#type: i32,
    #[prost(string, tag = "6")]
    pub unit: String,
    #[prost(string, tag = "7")]
    pub source_type_name: String,
    #[prost(int64, tag = "8")]
    pub interval: i64,
    #[prost(message, optional, tag = "9")]
    pub metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub name: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct MetricPoint {
    #[prost(double, tag = "1")]
    pub value: f64,
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
pub enum MetricType {
    Unspecified = 0,
    Count = 1,
    Rate = 2,
    Gauge = 3,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Metadata {
    #[prost(message, optional, tag = "1")]
    pub origin: Option<Origin>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Origin {
    #[prost(uint32, tag = "4")]
    pub product: u32,
    #[prost(uint32, tag = "5")]
    pub category: u32,
    #[prost(uint32, tag = "6")]
    pub service: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SketchPayload {
    #[prost(message, repeated, tag = "1")]
    pub sketches: Vec<Sketch>,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<CommonMetadata>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Sketch {
    #[prost(string, tag = "1")]
    pub metric: String,
    #[prost(string, tag = "2")]
    pub host: String,
    #[prost(string, repeated, tag = "4")]
    pub tags: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    pub dogsketches: Vec<Dogsketch>,
    #[prost(message, optional, tag = "8")]
    pub metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Dogsketch {
    #[prost(int64, tag = "1")]
    pub ts: i64,
    #[prost(int64, tag = "2")]
    pub cnt: i64,
    #[prost(double, tag = "3")]
    pub min: f64,
    #[prost(double, tag = "4")]
    pub max: f64,
    #[prost(double, tag = "5")]
    pub avg: f64,
    #[prost(double, tag = "6")]
    pub sum: f64,
    #[prost(sint32, repeated, tag = "7")]
    pub k: Vec<i32>,
    #[prost(uint32, repeated, tag = "8")]
    pub n: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CommonMetadata {
    #[prost(string, tag = "1")]
    pub agent_version: String,
    #[prost(string, tag = "6")]
    pub api_key: String,
}

/// What a request says, by the path it was sent to.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Series(MetricPayload),
    Sketches(SketchPayload),
    /// Of every other path.
    Json(serde_json::Value),
    /// A request without a body.
    Empty,
}

/// Undoes a `Content-Encoding`; an empty one stands for a request without that header.
pub fn decompress(encoding: &str, body: &[u8]) -> Result<Vec<u8>, String> {
    let mut raw = Vec::new();
    match encoding {
        "zstd" => zstd::Decoder::new(body).and_then(|mut reader| reader.read_to_end(&mut raw)),
        "deflate" => flate2::read::ZlibDecoder::new(body).read_to_end(&mut raw),
        "gzip" => flate2::read::GzDecoder::new(body).read_to_end(&mut raw),
        "identity" | "" => (&mut { body }).read_to_end(&mut raw),
        other => return Err(format!("unknown encoding {other}")),
    }
    .map_err(|error| error.to_string())?;
    Ok(raw)
}

/// Reads a whole request.
pub fn decode(path: &str, encoding: &str, body: &[u8]) -> Result<Body, String> {
    let raw = decompress(encoding, body)?;
    match path {
        "/api/v2/series" => {
            MetricPayload::decode(&raw[..]).map(Body::Series).map_err(|e| e.to_string())
        }
        "/api/beta/sketches" => {
            SketchPayload::decode(&raw[..]).map(Body::Sketches).map_err(|e| e.to_string())
        }
        _ if raw.is_empty() => Ok(Body::Empty),
        _ => serde_json::from_slice(&raw).map(Body::Json).map_err(|e| e.to_string()),
    }
}
