//! What a loop reads: handed over once by `core/envelopes/native.py`, as a mapping of plain values.

use crate::canonical::{Kind, Unit};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

pub const MEMBERS_MAX: usize = 60;

#[derive(Clone, Copy, PartialEq)]
pub enum Role {
    Fixed,
    Mask,
    Value,
}

pub struct Field {
    pub slot: usize,
    pub kind: Kind,
    pub role: Role,
    /// Its part where it is not there at all; None: the record is declined.
    pub absent: Option<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum KeyKind {
    Int,
    Text,
    Uuid,
    ObjectId,
}

pub struct Plan {
    pub documents: bool,
    pub names: Vec<Vec<u8>>,
    /// Slots whose mere presence leaves the record to the general form.
    pub refused: Vec<usize>,
    pub fields: Vec<Field>,
    pub foreign: Py<PyAny>,
    pub value_text: Py<PyAny>,
    /// What stands for a value that the event does not carry. Empty: nothing does.
    pub placeholders: Vec<Vec<u8>>,
    pub key_names: Vec<Vec<u8>>,
    /// Empty: `key_of` makes the key.
    pub key_kinds: Vec<KeyKind>,
    pub key_of: Py<PyAny>,
    pub version: Option<usize>,
    pub needs_version: bool,
    pub full_before: bool,
    pub post_images: bool,
    pub wrapped: bool,
    pub wrapped_key: bool,
    pub schema: Option<Vec<u8>>,
    pub key_schema: Option<Vec<u8>>,
}

fn required<'py, T>(plan: &Bound<'py, PyDict>, name: &str) -> PyResult<T>
where
    T: FromPyObject<'py>,
{
    plan.get_item(name)?.ok_or_else(|| PyValueError::new_err(format!("The plan has no {name}.")))?.extract()
}

fn wrong(what: &str, name: &str) -> PyErr {
    PyValueError::new_err(format!("This module knows no {what} {name:?}."))
}

impl Plan {
    pub fn new(plan: &Bound<'_, PyDict>) -> PyResult<Self> {
        let names: Vec<Vec<u8>> = required(plan, "names")?;
        let fields: Vec<Bound<'_, PyDict>> = required(plan, "fields")?;
        let fields = fields.iter().map(field).collect::<PyResult<Vec<_>>>()?;
        let key_kinds: Vec<String> = required(plan, "key_kinds")?;
        let version: Option<usize> = required(plan, "version")?;
        let refused: Vec<usize> = required(plan, "refused")?;
        let slots = fields.iter().map(|field| field.slot).chain(version).chain(refused.iter().copied());
        if slots.max().is_some_and(|slot| slot >= names.len()) {
            return Err(PyValueError::new_err("The plan names a member that it does not have."));
        }
        let key_names: Vec<Vec<u8>> = required(plan, "key_names")?;
        if names.len().max(key_names.len()) > MEMBERS_MAX {
            return Err(PyValueError::new_err(format!("The plan names more than {MEMBERS_MAX} members.")));
        }
        Ok(Plan {
            documents: required(plan, "documents")?,
            names,
            refused,
            fields,
            foreign: required(plan, "foreign")?,
            value_text: required(plan, "value_text")?,
            placeholders: required(plan, "placeholders")?,
            key_names,
            key_kinds: key_kinds.iter().map(|name| key_kind(name)).collect::<PyResult<_>>()?,
            key_of: required(plan, "key_of")?,
            version,
            needs_version: required(plan, "needs_version")?,
            full_before: required(plan, "full_before")?,
            post_images: required(plan, "post_images")?,
            wrapped: required(plan, "wrapped")?,
            wrapped_key: required(plan, "wrapped_key")?,
            schema: required(plan, "schema")?,
            key_schema: required(plan, "key_schema")?,
        })
    }
}

fn key_kind(name: &str) -> PyResult<KeyKind> {
    Ok(match name {
        "int" => KeyKind::Int,
        "text" => KeyKind::Text,
        "uuid" => KeyKind::Uuid,
        "objectid" => KeyKind::ObjectId,
        _ => return Err(wrong("key", name)),
    })
}

fn field(plan: &Bound<'_, PyDict>) -> PyResult<Field> {
    let name: String = required(plan, "kind")?;
    let per_second: i64 = required(plan, "per_second")?;
    let unit = Unit { per_second, wanted: required(plan, "wanted")?, round: required(plan, "round")? };
    let scale: Option<i64> = required(plan, "scale")?;
    let kind = match name.as_str() {
        "foreign" => Kind::Foreign,
        "deep" => Kind::Deep,
        "text" => Kind::Text { nfc: required(plan, "nfc")? },
        "decimal" => {
            let scale = scale.map(usize::try_from).transpose().map_err(|_| wrong("negative scale of", &name))?;
            Kind::Decimal { scale, fractions: required(plan, "fractions")? }
        }
        "unscaled" => Kind::Unscaled { scale: scale.unwrap_or(0) },
        "float" => Kind::Float,
        "epoch" => Kind::Epoch { unit, low: required(plan, "low")?, high: required(plan, "high")? },
        "iso" => Kind::Iso { unit },
        "days" => Kind::Days,
        "time" => Kind::Time { unit },
        "bool" => Kind::Bool,
        "uuid" => Kind::Uuid,
        "objectid" => Kind::ObjectId,
        _ => return Err(wrong("kind", &name)),
    };
    if unit.per_second <= 0 || unit.wanted <= 0 {
        return Err(wrong("unit of", &name));
    }
    let role: String = required(plan, "role")?;
    let role = match role.as_str() {
        "fixed" => Role::Fixed,
        "mask" => Role::Mask,
        "value" => Role::Value,
        _ => return Err(wrong("role", &role)),
    };
    Ok(Field { slot: required(plan, "slot")?, kind, role, absent: required(plan, "absent")? })
}
